"""Makes a one-layer container image of local files, for a node that reaches no registry.

image.py OUT.tar NAME:TAG ENTRYPOINT_JSON SRC=DEST...

`link:TARGET=PATH` makes a symbolic link, `own:UID=PATH` a folder of that user's and of the group of the same number; `user:UID=` is whom
the image runs as, `env:NAME=VALUE` a variable of it.
"""

import hashlib
import io
import json
import os
import sys
import tarfile

FOLDERS = ("bin", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "var")


def layer(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for item in files:
            source, path = item.removeprefix("link:").removeprefix("own:").split("=")
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.mode = 0o755
            if item.startswith("own:"):
                entry.type, entry.uid, entry.gid = tarfile.DIRTYPE, int(source), int(source)
                tar.addfile(entry)
            elif item.startswith("link:"):
                entry.type, entry.linkname = tarfile.SYMTYPE, source
                tar.addfile(entry)
            else:
                entry.size = os.path.getsize(source)
                with open(source, "rb") as content:
                    tar.addfile(entry, content)
    return out.getvalue()


def main(out, name, entrypoint, *files):
    told = {"Entrypoint": json.loads(entrypoint), "Env": ["PATH=/bin:/usr/bin"]}
    for item in files:
        if item.startswith("user:"):
            told["User"] = item.removeprefix("user:").rstrip("=")
        elif item.startswith("env:"):
            told["Env"].append(item.removeprefix("env:").removesuffix("="))
    content = layer([item for item in files if not item.startswith(("user:", "env:"))])
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": told,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(content).hexdigest()]},
        "history": [{"created_by": "image.py"}],
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(out, "w") as tar:
        for inside, data in ((config_name, config), ("layer.tar", content), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(inside)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


main(*sys.argv[1:])
