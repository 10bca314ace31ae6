"""What must hold of the files in cluster/: schemas where there are some, and the rules that no schema knows.

Each function returns the problems that it found, one line each; none means that the file is right.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from wm_rllib.cli.main import build_parser
from wm_rllib.metrics import METRICS
from wm_rllib.training.gauges import EXPORTED, STAGE_SECONDS, gauge_name

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.31"
CRDS = os.environ.get("WM_RLLIB_KUBERAY_CRDS")
"""Folder with KubeRay's CRDs (ray-operator/config/crd/bases of its repository), if there is one."""
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
RUNTIME_ENV_KEYS = {"working_dir", "excludes", "env_vars", "py_modules"}


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def pinned_ray() -> str:
    found = re.search(r"^ray\[.*\]==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M)
    assert found
    return found[1]


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def check_kubernetes(text: str) -> list[str]:
    """A file of Kubernetes documents: RayJob, RayCluster, and what they need."""
    problems = [] if re.match(r"# .*\n#\n#   kubectl", text) else ["the header has no launch command"]
    found = documents(text)
    for document in found:
        problems += _check_document(document)
    return problems + _check_references(text, found)


def _check_document(document: dict[str, Any]) -> list[str]:
    kind, spec = document.get("kind"), document.get("spec", {})
    problems = _check_name(document)
    if kind in ("RayJob", "RayCluster"):
        if document.get("apiVersion") != "ray.io/v1":
            problems.append(f"apiVersion of {kind} is {document.get('apiVersion')}, not ray.io/v1")
        problems += _check_crd(document)
    elif document.get("apiVersion") in ("v1", "apps/v1"):
        problems += _check_schema(document)
    if kind == "RayJob":
        problems += _check_job(document)
    if kind == "RayCluster":
        problems += check_cluster_spec(spec)
    return problems


def _check_name(document: dict[str, Any]) -> list[str]:
    name = document.get("metadata", {}).get("name", "")
    return [] if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", name) else [f"{name!r} is no DNS name"]


def _check_schema(document: dict[str, Any]) -> list[str]:
    return list(_schema_problems(json.dumps(document, sort_keys=True)))


@cache
def _schema_problems(text: str) -> tuple[str, ...]:
    """Of a document as JSON: a validation reads a schema of more than a megabyte, and mutants share most pods."""
    document = json.loads(text)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
        return (f"{document['kind']}: {error.message}",)
    except kubernetes_validate.InvalidSchemaError as error:
        return (f"{document.get('kind')}: no such kind, {error}",)
    return ()


def _check_crd(document: dict[str, Any]) -> list[str]:
    if CRDS is None:
        return []
    found = jsonschema.Draft7Validator(_crd_schema(CRDS, document["kind"])).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


@cache
def _crd_schema(folder: str, kind: str) -> Any:
    crd = yaml.load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    return _closed(next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    """The schema, refusing keys that it does not name; quantities may be texts or numbers."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    free = "additionalProperties" in closed or closed.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and closed.get("type") == "object" and not free:
        if schema["properties"].keys() != {"name", "namespace"} and "kind" not in schema["properties"]:
            closed["additionalProperties"] = False
    return closed


def _check_job(document: dict[str, Any]) -> list[str]:
    spec, problems = document.get("spec", {}), []
    problems += check_entrypoint(spec.get("entrypoint", ""))
    problems += check_runtime_env(spec.get("runtimeEnvYAML", ""))
    if not spec.get("backoffLimit", 0) > 0:
        problems.append("backoffLimit must be above 0: nothing would start the run again")
    if spec.get("submissionMode", SUBMISSION_MODES[0]) not in SUBMISSION_MODES:
        problems.append(f"submissionMode {spec['submissionMode']} is none of {SUBMISSION_MODES}")
    if not spec.get("shutdownAfterJobFinishes"):
        problems.append("shutdownAfterJobFinishes must be true: the nodes would stay, and nothing could be suspended")
    if "clusterSelector" in spec or "rayClusterSpec" not in spec:
        problems.append("the job must bring its own cluster: retries need a new one")
    cluster = spec.get("rayClusterSpec", {})
    if "kueue.x-k8s.io/queue-name" in document["metadata"].get("labels", {}):
        if cluster.get("enableInTreeAutoscaling"):
            problems.append("Kueue admits clusters of fixed size: no autoscaling")
        if not spec.get("suspend"):
            problems.append("a queued job starts suspended")
    return problems + check_cluster_spec(cluster)


def check_cluster_spec(spec: dict[str, Any]) -> list[str]:
    """The part that RayJob and RayCluster share."""
    problems, auth = [], spec.get("authOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        problems.append("authOptions must have mode token and a secretName")
    if spec.get("rayVersion") != pinned_ray():
        problems.append(f"rayVersion {spec.get('rayVersion')} is not {pinned_ray()} of requirements.txt")
    auto = spec.get("enableInTreeAutoscaling", False)
    if auto and spec.get("autoscalerOptions", {}).get("version") != "v2":
        problems.append("autoscalerOptions.version must be v2")
    head = spec.get("headGroupSpec", {})
    problems += _check_group("head", head, auto)
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        problems.append("the head must offer no CPU: workers that a head's loss must not cost would run there")
    pod = head.get("template", {}).get("spec", {})
    hook = (pod.get("containers") or [{}])[0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if "/opt/wm_rllib/cluster/pre_stop.py" not in hook:
        problems.append("the head's preStop hook must be pre_stop.py: SIGKILL leaves no time for a checkpoint")
    if pod.get("terminationGracePeriodSeconds", 30) < 120:
        problems.append("terminationGracePeriodSeconds of the head must be 120 or more")
    if not any(
        mount["mountPath"] == "/mnt/runs" for mount in (pod.get("containers") or [{}])[0].get("volumeMounts", [])
    ):
        problems.append("the head must mount /mnt/runs")
    groups = {group.get("groupName", ""): group for group in spec.get("workerGroupSpecs", [])}
    for name, group in groups.items():
        problems += _check_group(name, group, auto)
        if not 0 <= group.get("minReplicas", -1) <= group.get("replicas", -1) <= group.get("maxReplicas", -1):
            problems.append(f"{name}: minReplicas <= replicas <= maxReplicas does not hold")
    return problems + _check_roles(groups)


def _check_roles(groups: dict[str, Any]) -> list[str]:
    problems = []
    if not any(_requests(group).get("nvidia.com/gpu") for group in groups.values()):
        problems.append("no group requests nvidia.com/gpu for the learner")
    offering = [group for group in groups.values() if "rollout" in group.get("rayStartParams", {}).get("resources", "")]
    if not offering:
        problems.append("no group offers the custom resource rollout")
    for group in offering:
        pod = group["template"]["spec"]
        if not any(toleration.get("key") == "spot" for toleration in pod.get("tolerations", [])):
            problems.append(f"{group['groupName']} does not tolerate spot nodes")
    return problems


def _requests(group: dict[str, Any]) -> dict[str, Any]:
    containers = group.get("template", {}).get("spec", {}).get("containers") or [{}]
    return containers[0].get("resources", {}).get("requests", {})


def _check_group(name: str, group: dict[str, Any], auto: bool) -> list[str]:
    pod = group.get("template", {}).get("spec", {})
    problems = _check_schema({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod})
    if auto and pod.get("restartPolicy") != "Never":
        problems.append(f"{name}: restartPolicy must be Never with autoscaler v2")
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        problems.append(f"{name}: runAsNonRoot must be true")
    for container in pod.get("containers", []):
        problems += _check_container(name, container)
    return [f"{name}: {text}" if name not in text else text for text in problems + _check_start_params(name, group)]


def _check_container(name: str, container: dict[str, Any]) -> list[str]:
    image, problems = container.get("image", ""), []
    if not re.search(r":[\w.-]+$", image) or image.endswith(":latest"):
        problems.append(f"{name}: image {image!r} needs a fixed tag")
    resources = container.get("resources", {})
    for kind in ("cpu", "memory"):
        if kind not in resources.get("requests", {}) or kind not in resources.get("limits", {}):
            problems.append(f"{name}: no request or limit of {kind}")
    return problems


def _check_start_params(name: str, group: dict[str, Any]) -> list[str]:
    params, requests, problems = group.get("rayStartParams", {}), _requests(group), []
    if not all(isinstance(value, str) for value in params.values()):
        problems.append(f"{name}: rayStartParams must be texts")
    if "dashboard-host" in params:
        problems.append(f"{name}: KubeRay sets dashboard-host, for its own service alone")
    if name != "head" and str(params.get("num-cpus", requests.get("cpu"))) != str(requests.get("cpu")):
        problems.append(f"{name}: num-cpus {params['num-cpus']} is not the request of {requests.get('cpu')}")
    if str(params.get("num-gpus", 0)) != str(requests.get("nvidia.com/gpu", 0)):
        problems.append(f"{name}: num-gpus is not the request of nvidia.com/gpu")
    if "resources" in params:
        try:  # KubeRay hands it to a shell: a text in quotes that holds JSON
            json.loads(json.loads(params["resources"]))
        except (ValueError, TypeError):
            problems.append(f"{name}: resources {params['resources']} is no JSON in a quoted text")
    return problems


def _check_references(text: str, found: list[dict[str, Any]]) -> list[str]:
    """What is mounted or referred to must be in the file, or made by a command of its header."""
    problems, names = [], {(document["kind"], document["metadata"]["name"]) for document in found}
    dumped = json.dumps(found)
    for claim in set(re.findall(r'"claimName": "([^"]+)"', dumped)):
        if ("PersistentVolumeClaim", claim) not in names:
            problems.append(f"claim {claim} is not in the file")
    secrets = re.findall(r'"secretName": "([^"]+)"', dumped) + re.findall(r'"secretKeyRef": {"name": "([^"]+)"', dumped)
    for secret in set(secrets):
        if f"create secret generic {secret} " not in text:
            problems.append(f"the header does not say how to make the secret {secret}")
    for address in re.findall(r'"redisAddress": "([^":]+):', dumped):
        if ("Service", address) not in names:
            problems.append(f"redisAddress: no service {address}")
    if re.search(r'"type": "(LoadBalancer|NodePort)"', dumped):
        problems.append("no service may be reachable from outside of the cluster")
    queue = re.search(r'"kueue.x-k8s.io/queue-name": "([^"]+)"', dumped)
    if queue and ("LocalQueue", queue[1]) not in names:
        problems.append(f"queue {queue[1]} is not in the file")
    if re.search(r'"(password|auth_token|stringData)": "', dumped):
        problems.append("a secret stands in the file")
    return problems


# --- commands and environments ---------------------------------------------------------------------------------------


def check_entrypoint(command: str) -> list[str]:
    """The start-or-resume command of a job."""
    words = shlex.split(command)
    if words[:4] != ["python", "-m", "wm_rllib", "train"]:
        return [f"the entry point {command!r} is not `python -m wm_rllib train ...`"]
    try:
        args = build_parser().parse_args(words[3:])
    except Exception as error:
        return [f"the entry point is wrong: {error}"]
    problems = []
    if args.resume != "auto":
        problems.append("the entry point must have --resume auto: a second attempt would be refused")
    if args.run_dir is None or not (args.run_dir.startswith("/mnt/runs/") or "://" in args.run_dir):
        problems.append("the entry point must name a run folder on shared storage")
    if args.config is None or not (CLUSTER / Path(args.config).name).exists():
        problems.append(f"the entry point's --config {args.config} is not in cluster/")
    return problems


def check_runtime_env(text: str) -> list[str]:
    """A runtime environment; Ray itself ignores keys that it does not know."""
    tree = yaml.safe_load(text) or {}
    problems = [f"runtime env: unknown key {key}" for key in tree.keys() - RUNTIME_ENV_KEYS]
    try:
        RuntimeEnv(**tree)
    except (TypeError, ValueError) as error:
        problems.append(f"runtime env: {error}")
    if int(tree.get("env_vars", {}).get("RAY_JOB_STOP_WAIT_TIME_S", 3)) < 60:
        problems.append("runtime env: RAY_JOB_STOP_WAIT_TIME_S leaves too little time for a checkpoint")
    return problems


def submitted(text: str) -> list[str]:
    """What the header's `ray job submit` lines start."""
    joined = re.sub(r" \\\n#\s*", " ", text)
    return [match.strip() for match in re.findall(r"^#\s+ray job submit .*? -- (.*)$", joined, re.M)]


# --- ray up ----------------------------------------------------------------------------------------------------------


def check_ray_up(text: str) -> list[str]:
    """A file of Ray's cluster launcher, by Ray's own schema and checks, and what those let through."""
    config, problems = yaml.safe_load(text), []
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except (ValueError, KeyError, TypeError, NotImplementedError, jsonschema.ValidationError) as error:
        return [f"ray up: {str(error).splitlines()[0]}"]
    for name, kind in prepared.get("available_node_types", {}).items():
        if kind.get("min_workers", 0) > kind.get("max_workers", sys.maxsize):
            problems.append(f"{name}: min_workers is above max_workers")
    offered = [kind.get("resources", {}) for kind in config.get("available_node_types", {}).values()]
    commands = "\n".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    if "rollout" not in commands and not any("rollout" in resources for resources in offered):
        problems.append("no node offers the custom resource rollout")
    if "docker" in config and not re.search(r":[\w.-]+$", config["docker"].get("image", "")):
        problems.append("docker.image needs a fixed tag")
    return problems + _check_start_commands(commands, config) + _check_header(text)


def _check_start_commands(commands: str, config: dict[str, Any]) -> list[str]:
    problems, starts = [], re.findall(r"^.*ray start .*$", commands, re.M)
    if not starts or not all("RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in start for start in starts):
        problems.append("every `ray start` must have RAY_AUTH_MODE=token and a token's path")
    token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", commands)
    if not token or token[1] not in config.get("file_mounts", {}):
        problems.append("the token is not among file_mounts")
    if "--dashboard-host=127.0.0.1" not in commands or "0.0.0.0" in commands:
        problems.append("the dashboard must listen on 127.0.0.1 alone")
    return problems


def _check_header(text: str) -> list[str]:
    header = text.split("\ncluster_name", 1)[0]
    words = ("ray up -y cluster/", "ray dashboard cluster/", "ray job submit ", "ray down")
    problems = [f"the header has no `{word}`" for word in words if word not in header]
    return problems + [problem for command in submitted(text) for problem in check_entrypoint(command)]


# --- monitoring and image --------------------------------------------------------------------------------------------


def check_prometheus(text: str) -> list[str]:
    config, problems = yaml.safe_load(text), []
    if "/tmp/ray/prom_metrics_service_discovery.json" not in json.dumps(config):
        problems.append("no job reads Ray's service discovery file")
    if "--web.listen-address=127.0.0.1" not in text:
        problems.append("the launch command must keep Prometheus on 127.0.0.1")
    if not all({"job_name"} <= job.keys() for job in config.get("scrape_configs", [{}])):
        problems.append("a scrape config has no job_name")
    return problems


def exported_names() -> set[str]:
    """The names of our metrics in Prometheus."""
    assert set(EXPORTED) <= METRICS.keys()
    return {f"ray_{gauge_name(name)}" for name in EXPORTED} | {f"ray_{STAGE_SECONDS}"}


def check_dashboard(text: str) -> list[str]:
    try:
        board = json.loads(text)
    except ValueError as error:
        return [f"no JSON: {error}"]
    problems, used = [], set(re.findall(r"ray_\w+", json.dumps([board["panels"], board["templating"]])))
    problems += [f"no metric is called {name}" for name in sorted(used - exported_names())]
    if len({panel["id"] for panel in board["panels"]}) < len(board["panels"]):
        problems.append("two panels have one id")
    for panel in board["panels"]:
        if not panel.get("targets") or not panel.get("title"):
            problems.append(f"panel {panel.get('id')} shows nothing")
    problems += [f"no panel shows {name}" for name in sorted(exported_names() - used)]
    return problems


def check_dockerfile(text: str) -> list[str]:
    problems = []
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py311", text, re.M)
    if not base or base[1] != pinned_ray():
        problems.append(f"the base image is not Ray {pinned_ray()} of requirements.txt")
    if "ENV RAY_AUTH_MODE=token" not in text:
        problems.append("the image must have RAY_AUTH_MODE=token")
    if re.search(r"RAY_AUTH_TOKEN=", text):
        problems.append("the image must not hold a token")
    if re.findall(r"^USER (.*)$", text, re.M)[-1:] != ["ray"]:
        problems.append("the image must not run as root")
    for source in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", text, re.M):
        problems += [f"COPY {part}: no such file" for part in source.split() if not (ROOT / part).exists()]
    return problems
