"""Renders the chart offline and judges what comes out; for the suites `chart` and `kubernetes`. By hand: `target/venv-chart/bin/python`.

chart.py render [VALUES.yaml]     the objects as JSON, by Helm's own SDK
chart.py validate [VALUES.yaml]   the same against the schemas of four Kubernetes versions, strictly
chart.py plain [--check]          writes (compares) proxy/dist/kubernetes/agent-fips-proxy.yaml
chart.py values                   the leaves of values.yaml, one a line, and their defaults
chart.py ecs FILE                 a task definition against the API model of botocore
"""

import json
import pathlib
import sys

import yaml

DIST = pathlib.Path(__file__).resolve().parents[2] / "proxy/dist"
CHART = DIST / "helm/agent-fips-proxy"
PLAIN = DIST / "kubernetes/agent-fips-proxy.yaml"
# The newest has the field for AppArmor; what has it not is judged without.
VERSIONS, OLDER = ("1.31", "1.37"), ("1.25", "1.29")
# Kinds that are no part of Kubernetes itself.
FOREIGN = ("PodMonitor",)


def render(values):
    import helm_python

    files = helm_python.Chart.load(str(CHART)).render(values, name="agent-fips-proxy", namespace="agent-fips-proxy")
    texts = [text.strip() for name, text in sorted(files.items()) if not name.endswith("NOTES.txt")]
    return "\n---\n".join(text.removeprefix("---\n") for text in texts if text) + "\n"


def read(path):
    return yaml.safe_load(pathlib.Path(path).read_text()) or {}


def validate(values):
    import kubernetes_validate

    for versions, more in ((VERSIONS, {}), (OLDER, {"appArmorUnconfined": False})):
        for document in yaml.safe_load_all(render(values | more)):
            if document and document["kind"] not in FOREIGN:
                for version in versions:
                    kubernetes_validate.validate(document, version, strict=True)


def leaves(value, path=""):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, json.dumps(value)


def ecs(path):
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ecs")
    report = ParamValidator().validate(json.loads(pathlib.Path(path).read_text()), model.operation_model("RegisterTaskDefinition").input_shape)
    if report.has_errors():
        sys.exit(report.generate_report())


def main(verb, *rest):
    if verb in ("render", "validate"):
        values = read(rest[0]) if rest else {}
        if verb == "validate":
            validate(values)
        else:
            print(json.dumps([document for document in yaml.safe_load_all(render(values)) if document]))
    elif verb == "plain":
        text = "# Rendered from proxy/dist/helm by tests/kubernetes/chart.py. Do not edit.\n" + render({})
        if "--check" not in rest:
            PLAIN.write_text(text)
        elif PLAIN.read_text() != text:
            sys.exit(f"{PLAIN.name} is stale: run `target/venv-chart/bin/python tests/kubernetes/chart.py plain` and commit the result")
    elif verb == "values":
        for path, default in leaves(read(CHART / "values.yaml")):
            print(path, default)
    elif verb == "ecs":
        ecs(rest[0])
    else:
        sys.exit(__doc__)


main(*sys.argv[1:])
