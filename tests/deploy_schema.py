"""JSON schemas of the Kubernetes objects in deploy/: the fields that we use, and no others.

From the API reference of Kubernetes 1.37 and the CRDs of KubeRay. What is allowed there and stands
not here is a reason to add it here, after a look whether it means what it seems to.

The real CRDs are a megabyte each and not copied here. Against those of KubeRay 1.5.1, 1.6.2 and
1.7.0 this extract and the manifests were checked on 2026-11-23, and can be again, with a checkout
of kuberay:

    git -C kuberay checkout v1.7.0
    python -m tests.deploy_crds kuberay/ray-operator/config/crd/bases

All fits 1.7.0; the older ones don't know a worker group's `priority`, as deploy/raycluster.yaml
says.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
TEXT: Schema = {"type": "string", "minLength": 1}
WHOLE: Schema = {"type": "integer", "minimum": 0}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(m|Mi|Gi)?$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
CRON: Schema = {
    "type": "string",
    "pattern": r"^([0-5]?\d|\*) ([01]?\d|2[0-3]|\*) ([12]?[1-9]|[123]0|31|\*) (\d|1[0-2]|\*)"
    r" ([0-7](-[0-7])?|\*)$",
}


def fields(needed: dict[str, Schema], others: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields only."""
    return {
        "type": "object",
        "properties": {**needed, **(others or {})},
        "required": list(needed),
        "additionalProperties": False,
    }


def some(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def words(value: Schema = TEXT) -> Schema:
    return {"type": "object", "additionalProperties": value}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def kind(
    version: str, name: str, rest: dict[str, Schema], metadata: Schema | None = None
) -> Schema:
    metadata = metadata or fields({"name": NAME}, {"annotations": words()})
    head = {"apiVersion": one_of(version), "kind": one_of(name), "metadata": metadata}
    return fields({**head, **rest})


ENV = fields(
    {"name": TEXT},
    {
        "valueFrom": fields({"fieldRef": fields({"fieldPath": TEXT})}),
        "value": {"type": "string", "pattern": "^/cache/"},  # no others: no secrets
    },
)
SIZES = fields({"requests": words(QUANTITY), "limits": words(QUANTITY)})
CONTAINER = fields(
    {
        "name": NAME,
        "image": {"type": "string", "pattern": r"^[a-z0-9./-]+:[\w.-]+$"},  # with a tag
        "resources": SIZES,
    },
    {
        "command": some(TEXT),
        "args": some(TEXT),
        "env": some(ENV),
        "envFrom": some(
            fields({"secretRef": fields({"name": NAME}, {"optional": {"type": "boolean"}})})
        ),
        "ports": some(fields({"containerPort": PORT}, {"name": NAME})),
        "volumeMounts": some(
            fields({"name": NAME, "mountPath": TEXT}, {"readOnly": {"type": "boolean"}})
        ),
    },
)
TOLERATION = fields({
    "key": TEXT,
    "operator": one_of("Exists"),
    "effect": one_of("NoSchedule", "NoExecute", "PreferNoSchedule"),
})  # fmt: skip
VOLUME = fields({"name": NAME}, {"configMap": fields({"name": NAME}), "emptyDir": fields({})})
POD = fields({
    "spec": fields(
        {"serviceAccountName": NAME, "containers": some(CONTAINER)},
        {
            "restartPolicy": one_of("Never", "OnFailure"),
            "tolerations": some(TOLERATION),
            "nodeSelector": words(),
            "volumes": some(VOLUME),
        },
    )
})  # fmt: skip

NIGHT = fields(
    {"schedule": CRON, "concurrencyPolicy": one_of("Forbid"), "jobTemplate": fields({
        "spec": fields(
            {"template": POD}, {"backoffLimit": WHOLE, "activeDeadlineSeconds": WHOLE}
        ),
    })},
    {
        "timeZone": TEXT,
        "startingDeadlineSeconds": WHOLE,
        "successfulJobsHistoryLimit": WHOLE,
        "failedJobsHistoryLimit": WHOLE,
    },
)  # fmt: skip
HEAD = fields({"rayStartParams": words(), "template": POD})
WORKERS = fields({
    "groupName": NAME,
    "replicas": WHOLE,
    "minReplicas": WHOLE,
    "maxReplicas": WHOLE,
    "rayStartParams": words(),
    "template": POD,
}, {"priority": WHOLE, "resources": words()})  # fmt: skip
RAY_CLUSTER = fields(
    {
        "rayVersion": TEXT,
        "authOptions": fields({"mode": one_of("token")}),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": some(WORKERS),
    },
    {
        "enableInTreeAutoscaling": one_of(True),
        "autoscalerOptions": fields({
            "version": one_of("v2"),
            "idleTimeoutSeconds": WHOLE,
            "upscalingMode": one_of("Default", "Aggressive", "Conservative"),
            "resources": SIZES,
        }),
    },
)  # fmt: skip
RAY_JOB = fields(
    {
        "entrypoint": TEXT,
        "shutdownAfterJobFinishes": one_of(True),
        "rayClusterSpec": RAY_CLUSTER,
    },
    {
        "backoffLimit": WHOLE,
        "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
        "ttlSecondsAfterFinished": WHOLE,
        "submitterConfig": fields({"backoffLimit": WHOLE}),
    },
)
OWNED = fields({
    "name": TEXT,
    "ownerReferences": some(fields({"apiVersion": TEXT, "kind": TEXT, "name": TEXT, "uid": TEXT})),
})  # fmt: skip

RULE = fields({"apiGroups": some(TEXT), "resources": some(TEXT), "verbs": some(TEXT)})
SUBJECT = fields({"kind": one_of("ServiceAccount"), "name": NAME})
ROLE_REF = fields({
    "apiGroup": one_of("rbac.authorization.k8s.io"), "kind": one_of("Role"), "name": NAME
})  # fmt: skip
RBAC = "rbac.authorization.k8s.io/v1"

KINDS: dict[str, Schema] = {
    "ServiceAccount": kind("v1", "ServiceAccount", {}),
    "Role": kind(RBAC, "Role", {"rules": some(RULE)}),
    "RoleBinding": kind(RBAC, "RoleBinding", {"roleRef": ROLE_REF, "subjects": some(SUBJECT)}),
    "ConfigMap": kind("v1", "ConfigMap", {"data": words()}),
    "CronJob": kind("batch/v1", "CronJob", {"spec": NIGHT}),
    "RayCluster": kind("ray.io/v1", "RayCluster", {"spec": RAY_CLUSTER}),
    "RayJob": kind("ray.io/v1", "RayJob", {"spec": RAY_JOB}, OWNED),
}
"""By an object's `kind`; no Secret: none belongs into a file."""
