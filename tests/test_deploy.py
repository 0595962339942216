"""deploy/: what cron and Kubernetes are given is valid, fits together, and the job knows it."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.embed import EmbedJob
from jobs.with_gpus import GpusJob
from stella_ray.errors import SettingsError
from stella_ray.pipeline.rates import DENSE_FLOPS
from stella_ray.settings import read_settings
from tests.deploy_schema import CRON, KINDS

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFEST = (DEPLOY / "nightly.yaml").read_text("utf-8")
CRONTAB = (DEPLOY / "crontab").read_text("utf-8")


def job_of(words: list[str]) -> EmbedJob:
    """The settings that a command line gives to the job; refuses what the job doesn't know."""
    program = next(i for i, word in enumerate(words) if word.endswith("jobs/embed.py"))
    assert words[program - 1] == "python"
    job = read_settings(EmbedJob, words[program + 1 :])
    assert job.corpus[0].startswith("s3://")
    assert job.table.startswith("s3://")
    return job


def objects_of(text: str) -> dict[str, list[Any]]:
    """The manifest's objects by kind, the ConfigMap's RayJob too, each after its schema."""
    found: dict[str, list[Any]] = {}
    documents = [document for document in yaml.safe_load_all(text) if document is not None]
    for document in documents:
        jsonschema.Draft202012Validator(KINDS[document["kind"]]).validate(document)
        found.setdefault(document["kind"], []).append(document)
        for inner in document.get("data", {}).values():
            documents.append(yaml.safe_load(inner))
    return found


def cpus_and_gpus(group: dict[str, Any]) -> tuple[int, int]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    count = group["replicas"]
    return count * int(limits["cpu"]), count * int(limits.get("nvidia.com/gpu", "0"))


def check_manifest(text: str) -> dict[str, list[Any]]:
    """Schemas, names that refer to each other, the job's settings, and room for its encoders."""
    objects = objects_of(text)
    names = {(kind, one["metadata"]["name"]) for kind, some in objects.items() for one in some}
    (cron,), (ray_job,) = objects["CronJob"], objects["RayJob"]
    waiting = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    cluster = ray_job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"]["spec"]]
    pods += [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
    (binding,) = objects["RoleBinding"]

    assert {("ServiceAccount", pod["serviceAccountName"]) for pod in [waiting, *pods]} <= names
    assert ("ServiceAccount", binding["subjects"][0]["name"]) in names
    assert binding["subjects"][0]["name"] == waiting["serviceAccountName"]
    assert ("Role", binding["roleRef"]["name"]) in names
    assert {("ConfigMap", one["configMap"]["name"]) for one in waiting["volumes"]} <= names
    mounts = {mount["name"] for mount in waiting["containers"][0]["volumeMounts"]}
    assert mounts == {one["name"] for one in waiting["volumes"]}
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    # A CronJob's Job adds 9 characters to its name, and a RayJob's name may have 47.
    assert len(cron["metadata"]["name"]) <= 38

    pool = job_of(shlex.split(ray_job["spec"]["entrypoint"])).pool
    groups = cluster["workerGroupSpecs"]
    assert all(one["replicas"] == one["minReplicas"] == one["maxReplicas"] for one in groups)
    cpus, gpus = (sum(each) for each in zip(*map(cpus_and_gpus, groups), strict=True))
    assert pool.encoders > 0
    assert 0 < pool.encoders * pool.gpus_per_encoder <= gpus
    assert pool.encoders + 2 <= cpus  # one each, and reading and writing
    return objects


def test_the_manifest_is_valid_and_its_entrypoint_is_a_job_of_ours() -> None:
    check_manifest(MANIFEST)


def test_the_manifest_names_the_ray_that_the_constraints_pin() -> None:
    pinned = re.search(r"^ray==(.+)$", (DEPLOY / "../constraints.txt").read_text("utf-8"), re.M)
    assert pinned
    (ray_job,) = objects_of(MANIFEST)["RayJob"]
    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"rayproject/ray:{pinned[1]}-" in MANIFEST


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("concurrencyPolicy: Forbid", "concurencyPolicy: Forbid"),
        ("concurrencyPolicy: Forbid", "concurrencyPolicy: Allow"),
        ("schedule: 15 2 * * *", "schedule: 15 25 * * *"),
        ("schedule: 15 2 * * *", "schedule: 15 2 * *"),
        ("kind: RayJob\n", "kind: RayJobs\n"),
        ("apiVersion: ray.io/v1\n", "apiVersion: ray.io/v1alpha1\n"),
        ("rayClusterSpec:", "rayCluster:"),
        ("backoffLimit: 1\n", "backoffLimit: one\n"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
        ("mode: token", "mode: disabled"),
        ('num-cpus: "0"', "num-cpus: 0"),
        ('nvidia.com/gpu: "1"}', "nvidia.com/gpu: 1}"),
        ('nvidia.com/gpu: "1"}', 'nvidia.com/gpus: "1"}'),
        ("            replicas: 2", "            replicas: 1"),
        ("            minReplicas: 2", "            minReplicas: 0"),
        ("--pool.encoders 2", "--pool.encoders 3"),
        ("--pool.encoders 2", "--pool.workers 2"),
        ("--pool.gpus_per_encoder 1", "--pool.gpus_per_encoder lots"),
        ("--corpus s3", "--corpora s3"),
        ("jobs/embed.py", "jobs/embedd.py"),
        ("verbs: [create, get]", "verbs: create"),
        ("configMap: {name: stella-ray-nightly}", "configMap: {name: nightly}"),
        ("serviceAccountName: stella-ray\n", "serviceAccountName: stella\n"),
        ("image: alpine/kubectl:1.36.3", "image: alpine/kubectl"),
        ("restartPolicy: Never", "restartPolicy: Always"),
        ("cpu: 10m", "cpu: ten"),
        ("kind: Role\nmetadata", "kind: Secret\nmetadata"),
    ],
)
def test_a_manifest_with_a_mistake_is_found(right: str, wrong: str) -> None:
    assert right in MANIFEST
    errors = (jsonschema.ValidationError, SettingsError, AssertionError, KeyError, StopIteration)
    with pytest.raises(errors):
        check_manifest(MANIFEST.replace(right, wrong))


KUBECTL = """#!/bin/sh
# What the night's script needs of kubectl: RayJobs that are files, states that the test has said.
cd "$(dirname "$0")"
case "$1 $3" in
"create -") cat > rayjob.yaml ;;
"get ") test -f rayjob.yaml ;;
"get -o")
    field=${4#jsonpath=\\{.status.}
    field=${field%\\}}
    sed -n 1p "$field" 2> /dev/null
    [ "$(grep -c . "$field")" -lt 2 ] || sed -i 1d "$field" ;;
*) exit 9 ;;
esac
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("deployed", "job", "code"),
    [
        (["", "Initializing", "Running", "Complete"], "SUCCEEDED", 0),
        (["Running", "Failed"], "FAILED", 1),
        (["Failed"], "", 1),  # it never came to a job
        (["Complete"], "STOPPED", 1),
    ],
)
def test_the_night_makes_its_rayjob_once_and_ends_as_that_does(
    tmp_path: Path, deployed: list[str], job: str, code: int
) -> None:
    (cron,) = objects_of(MANIFEST)["CronJob"]
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "nightly").mkdir()
    inner = yaml.safe_load(MANIFEST.split("kind: ConfigMap")[1].split("\n---")[0])
    (tmp_path / "nightly/rayjob.yaml").write_text(inner["data"]["rayjob.yaml"], "utf-8")
    executable(tmp_path / "bin/kubectl", KUBECTL)
    executable(tmp_path / "bin/sleep", "#!/bin/sh\n")
    script = container["args"][0].replace("/nightly/", f"{tmp_path}/nightly/")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    environment |= {"NIGHT_NAME": "stella-ray-29398120", "NIGHT_UID": "8f0c-1"}
    for _ in range(2):  # the second pod finds the RayJob that the first one made
        (tmp_path / "bin/jobDeploymentStatus").write_text("\n".join(deployed) + "\n", "utf-8")
        (tmp_path / "bin/jobStatus").write_text(job + "\n", "utf-8")
        (tmp_path / "bin/message").write_text("how it went\n", "utf-8")
        done = subprocess.run(
            [*container["command"], script], env=environment, capture_output=True, text=True,
            timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        last = f"rayjob/stella-ray-29398120: {deployed[-1]}, job {job}: how it went\n"
        assert done.stdout.endswith(last)
        made = yaml.safe_load((tmp_path / "bin/rayjob.yaml").read_text("utf-8"))
        jsonschema.validate(made, KINDS["RayJob"])
        assert made["metadata"]["name"] == "stella-ray-29398120"
        assert made["metadata"]["ownerReferences"][0]["uid"] == "8f0c-1"
        (tmp_path / "nightly/rayjob.yaml").write_text("not read again", "utf-8")


@dataclass
class Entry:
    """A crontab's environment, schedule and command, as cron reads them."""

    environment: dict[str, str]
    schedule: str
    command: str


def read_crontab(text: str) -> Entry:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    settings = [re.fullmatch(r"([A-Z_]+)=(\S+)", line) for line in lines]
    (line,) = (line for line, found in zip(lines, settings, strict=True) if not found)
    *when, command = line.split(" ", 5)
    assert not re.search(r"(?<!\\)%", command)  # cron ends the command there
    jsonschema.validate(" ".join(when), CRON)
    environment = {found[1]: found[2] for found in settings if found}
    return Entry(environment, " ".join(when), command.replace("\\%", "%"))


def check_crontab(text: str) -> Entry:
    entry = read_crontab(text)
    words = shlex.split(entry.command)
    job = job_of(words[: words.index(">")])
    first = next(i for i, word in enumerate(words) if word.endswith("jobs/with_gpus.py"))
    asked = read_settings(GpusJob, words[first + 1 : words.index("--", first)])
    assert words[first - 1] == "python"
    # A pool of a fixed size needs all of its GPUs; one that takes what is there can begin with few.
    assert asked.least_gpus == 1
    assert (job.pool.encoders, job.pool.gpus_per_encoder) == (0, 1)
    submit = words.index("submit")
    assert words[submit - 2 : submit] == [".venv/bin/ray", "job"]
    assert entry.environment["RAY_AUTH_MODE"] == "token"
    assert entry.environment["RAY_ADDRESS"].startswith("http://")
    return entry


def test_the_crontab_submits_a_job_of_ours() -> None:
    check_crontab(CRONTAB)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("15 2 * * *", "15 24 * * *"),
        ("15 2 * * *", "15 2 * *"),
        ("\\%Y", "%Y"),
        ("--keep_columns", "--kept_columns"),
        ("--least_gpus 1", "--least_gpus 5"),
        ("--least_gpus 1 ", ""),
        ("--pool.gpus_per_encoder 1", "--pool.encoders 4"),
        ("--gpus 4", "--gpus four"),
        ("--storage.region", "--region.storage"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        ("RAY_ADDRESS=http", "RAY_ADRESS=http"),
        ("jobs/embed.py", "jobs/embedd.py"),
        ("s3://example-tables", "example-tables"),
    ],
)
def test_a_crontab_with_a_mistake_is_found(right: str, wrong: str) -> None:
    assert right in CRONTAB
    errors = (jsonschema.ValidationError, SettingsError, AssertionError, KeyError, StopIteration)
    with pytest.raises((*errors, ValueError)):
        check_crontab(CRONTAB.replace(right, wrong))


@pytest.mark.parametrize(
    ("said", "submit_code", "code", "mailed"),
    [
        ("read 300 rows: 300 embedded", 0, 0, False),
        # Ray's own words, after the job's own.
        ("error: no shards\nJob entrypoint command failed with exit code 3, last log", 1, 3, True),
        ("Failed to connect to Ray at address", 1, 1, True),
    ],
)
def test_cron_mails_a_failure_with_the_jobs_own_exit_code_and_nothing_else(
    tmp_path: Path, said: str, submit_code: int, code: int, mailed: bool
) -> None:
    entry = read_crontab(CRONTAB)
    (tmp_path / "logs").mkdir()
    ray = (
        f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/words\necho '{said}'\nexit {submit_code}\n"
    )
    executable(tmp_path / "stella-ray/.venv/bin/ray", ray)
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **entry.environment}
    done = subprocess.run(
        [entry.environment["SHELL"], "-c", entry.command], env=environment, capture_output=True,
        text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout == (f"{said}\n" if mailed else "")
    assert not done.stderr
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text("utf-8") == f"{said}\n"
    words = (tmp_path / "words").read_text("utf-8").split("\n")
    assert re.fullmatch(r"embed-docs-\d{8}T\d{4}", words[words.index("--submission-id") + 1])
    assert f"{words[words.index('--submission-id') + 1]}.log" == log.name


@pytest.mark.parametrize("preset", sorted((DEPLOY.parent / "jobs/presets").glob("gpu-*.yaml")))
def test_the_preset_of_a_kind_of_gpu_is_the_job_s_and_names_a_kind_that_is_known(
    preset: Path,
) -> None:
    job = read_settings(
        EmbedJob, ["--config", str(preset), "--corpus", "s3://c", "--table", "s3://t"]
    )
    assert job.estimate.gpu == preset.stem.removeprefix("gpu-")
    assert job.estimate.gpu in DENSE_FLOPS
    assert job.pool.gpus_per_encoder == 1
    assert job.encoder.token_budget == 0  # found by the encoder itself
