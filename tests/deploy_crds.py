"""Check deploy/'s Ray objects, and tests/deploy_schema.py's extract, against KubeRay's own CRDs.

python -m tests.deploy_crds FOLDER    # kuberay's ray-operator/config/crd/bases at a tag

No test: the CRDs are a megabyte each and aren't in this repository.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.deploy_schema import KINDS

DEPLOY = Path(__file__).parents[1] / "deploy"
FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def strict(schema: Any) -> Any:
    """The CRD's schema as an API server with `--validate=strict` takes it: no unknown fields."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        keep = schema.get("x-kubernetes-preserve-unknown-fields", False)
        made.setdefault("additionalProperties", keep)
    return made


def crd(folder: Path, kind: str) -> dict[str, Any]:
    """The schema of `kind` in ray.io/v1."""
    read = yaml.load((folder / FILES[kind]).read_text("utf-8"), yaml.CSafeLoader)
    (version,) = (one for one in read["spec"]["versions"] if one["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own
    return dict(schema)


def ray_objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """The RayCluster and the RayJob, which stands in a ConfigMap."""
    for name in ("nightly.yaml", "raycluster.yaml"):
        for one in yaml.safe_load_all((DEPLOY / name).read_text("utf-8")):
            inner = [yaml.safe_load(text) for text in (one or {}).get("data", {}).values()]
            for found in [one, *inner]:
                if found is not None and found["kind"] in FILES:
                    yield name, found


def unknown(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """The fields of our extract that the CRD doesn't have."""
    for name, value in ours.get("properties", {}).items():
        if name in {"apiVersion", "kind", "metadata"}:
            continue
        if name not in theirs.get("properties", {}):
            yield f"{path}.{name}"
        else:
            yield from unknown(value, theirs["properties"][name], f"{path}.{name}")
    if "items" in ours:
        yield from unknown(ours["items"], theirs.get("items", {}), f"{path}[]")


def main() -> None:
    """Say what was checked; leave with 1 where something doesn't fit."""
    folder, wrong = Path(sys.argv[1]), 0
    for name, found in ray_objects():
        schema = crd(folder, found["kind"])
        errors = list(jsonschema.Draft202012Validator(schema).iter_errors(found))
        errors += [f"the extract's {one}" for one in unknown(KINDS[found["kind"]], schema)]
        wrong += len(errors)
        print(f"{name}: {found['kind']}: {len(errors)} errors")
        for error in errors:
            where = f"{error.json_path}: {error.message}" if hasattr(error, "message") else error
            print(f"  {where}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
