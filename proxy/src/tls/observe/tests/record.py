"""Writes recorded.txt: handshakes between `openssl s_client` and `openssl s_server`, read by a relay between them on loopback.

Run it as `python3 record.py` in this folder; nothing else runs it. Keys and certificates are made for it and thrown away. Of the
server's bytes that stay in the clear: up to the first record that is encrypted.
"""

import os
import socket
import subprocess
import tempfile
import threading
import time

NAME = "trace.agent.ddog-gov.com"
# Case: options of the client, of the server, and whether it is the second of two connections that is recorded.
CASES = {
    "tls13_p256": ("-groups P-256", "", False),
    "tls13_p521": ("-groups P-521", "", False),
    "tls13_x25519": ("-groups X25519", "", False),
    "tls13_chacha20": ("-groups P-256", "-ciphersuites TLS_CHACHA20_POLY1305_SHA256", False),
    "tls13_retried": ("-groups X25519:P-256", "-groups P-256", False),
    "tls13_resumed": ("-groups P-256", "", True),
    # No group in common the second time: the pre-shared key alone.
    "tls13_psk_only": ("-groups P-256 -allow_no_dhe_kex", "-groups P-256 -allow_no_dhe_kex", "-groups X448 -allow_no_dhe_kex"),
    "tls12_p256": ("-tls1_2 -groups P-256 -alpn h2,http/1.1", "", False),
    "tls12_x25519": ("-tls1_2 -groups X25519:P-256", "", False),
    "tls12_no_ems": ("-tls1_2 -groups P-256", "no_ems", False),
    "tls12_chacha20": ("-tls1_2 -groups P-256 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", "", False),
    "tls12_cbc": ("-tls1_2 -groups P-256 -cipher ECDHE-ECDSA-AES256-SHA", "", False),
    "tls12_rsa": ("-tls1_2 -cipher AES256-GCM-SHA384", "rsa", False),
    "tls12_dhe": ("-tls1_2 -cipher DHE-RSA-AES256-GCM-SHA384", "rsa", False),
    "tls12_resumed_by_ticket": ("-tls1_2 -groups P-256", "", True),
    "tls12_resumed_by_id": ("-tls1_2 -groups P-256 -no_ticket", "-no_ticket", True),
    "tls11": ("-tls1_1 -groups P-256 -cipher ALL:@SECLEVEL=0", "-cipher ALL:@SECLEVEL=0", False),
    "tls10": ("-tls1 -groups P-256 -cipher ALL:@SECLEVEL=0", "-cipher ALL:@SECLEVEL=0", False),
    "refused": ("-tls1_3", "-tls1_2", False),
}


def run(folder, *words):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def certificate(folder, name, *key):
    run(folder, "req", "-x509", "-nodes", "-newkey", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
        "-subj", f"/CN={NAME}")


def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def relay(listener, server, said):
    """Passes connections on, one after the other; `said` is what the two said in the last one."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        upstream = socket.create_connection(("127.0.0.1", server))
        said["client"], said["server"], said["answered"] = bytearray(), bytearray(), False

        def pump(source, sink, who):
            try:
                while chunk := source.recv(65536):
                    if who == "server":
                        said["answered"] = True
                    if who == "server" or not said["answered"]:
                        said[who] += chunk
                    sink.sendall(chunk)
            except OSError:
                pass
            try:
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        both = [threading.Thread(target=pump, args=way) for way in ((client, upstream, "client"), (upstream, client, "server"))]
        for one in both:
            one.start()
        for one in both:
            one.join()


def in_the_clear(data, retried):
    """The records before the first encrypted one: application data, or a handshake record after ChangeCipherSpec."""
    end, changed = 0, False
    while end + 5 <= len(data):
        kind, length = data[end], int.from_bytes(data[end + 3:end + 5], "big")
        if kind == 23 or (changed and not retried):
            break
        changed |= kind == 20
        end += 5 + length
    return bytes(data[:end])


def connect(folder, to, options):
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{to}", "-servername", NAME, *options.split()],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.7)
    client.stdin.close()
    client.wait()


def record(folder, case):
    client, server, twice = CASES[case]
    environment = dict(os.environ)
    key = "ecdsa"
    if server == "no_ems":
        server = ""
        environment["OPENSSL_CONF"] = os.path.join(folder, "no_ems.cnf")
    if server == "rsa":
        server, key = "", "rsa"
    at = port()
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{at}", "-cert", f"{key}.pem", "-key", f"{key}.key", "-alpn", "http/1.1",
         *server.split()],
        cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=relay, args=(listener, at, said), daemon=True).start()
        to = listener.getsockname()[1]
        time.sleep(0.5)
        if twice:
            connect(folder, to, f"{client} -sess_out session")
            client = f"{twice if isinstance(twice, str) else client} -sess_in session"
        connect(folder, to, client)
    process.terminate()
    process.wait()
    return said["client"].hex(), in_the_clear(said["server"], case == "tls13_retried").hex()


def main():
    version = subprocess.run(["openssl", "version"], check=True, capture_output=True, text=True).stdout.split(" (")[0].strip()
    with tempfile.TemporaryDirectory() as folder:
        certificate(folder, "ecdsa", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        certificate(folder, "rsa", "rsa:2048")
        with open(os.path.join(folder, "no_ems.cnf"), "w") as config:
            config.write("openssl_conf=a\n[a]\nssl_conf=b\n[b]\nsystem_default=c\n[c]\nOptions=-ExtendedMasterSecret\n")
        lines = [f"# Handshakes of {version}, recorded by record.py: case, who speaks, bytes."]
        for case in CASES:
            client, server = record(folder, case)
            lines += [f"{case} client {client}", f"{case} server {server}"]
    with open("recorded.txt", "w") as out:
        out.write("\n".join(lines) + "\n")


main()
