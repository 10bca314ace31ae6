"""The files in cluster/ hold what tests/cluster_rules.py asks for, and each rule can fail."""

import re
import shlex

import pytest

pytest.importorskip("kubernetes_validate")

import cluster_rules as rules
from cluster_rules import CLUSTER

from wm_rllib.settings.yaml_files import read_yaml

CHECKS = {
    "rayjob.yaml": rules.check_kubernetes,
    "rayjob-kueue.yaml": rules.check_kubernetes,
    "raycluster.yaml": rules.check_kubernetes,
    "podmonitor.yaml": rules.check_kubernetes,
    "aws.yaml": rules.check_ray_up,
    "local.yaml": rules.check_ray_up,
    "runtime_env.yaml": rules.check_runtime_env,
    "prometheus.yaml": rules.check_prometheus,
    "grafana-dashboard.json": rules.check_dashboard,
    "Dockerfile": rules.check_dockerfile,
}
ELSEWHERE = {"train.yaml", "pre_stop.py"}  # test_job.py runs them


def test_every_file_is_checked():
    names = {path.name for path in CLUSTER.iterdir() if path.is_file()}
    assert names == CHECKS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", CHECKS)
def test_file_is_right(name):
    assert CHECKS[name]((CLUSTER / name).read_text()) == []


# What to replace in which file, by what, and a word of the problem that must be found.
MUTANTS = [
    ("rayjob.yaml", "apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1", "apiVersion"),
    ("rayjob.yaml", " --resume auto", "", "--resume auto"),
    ("rayjob.yaml", "--run-dir /mnt/runs/acrobot", "--run-dir runs/acrobot", "shared storage"),
    ("rayjob.yaml", "--resume auto", "--resume auto --gpus 2", "entry point is wrong"),
    ("rayjob.yaml", "backoffLimit: 3", "backoffLimit: 0", "backoffLimit"),
    ("rayjob.yaml", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "shutdownAfterJobFinishes"),
    ("rayjob.yaml", "  backoffLimit: 3", "  backoffLimit: 3\n  submissionMode: Magic", "submissionMode"),
    ("rayjob.yaml", "mode: token", "mode: none", "authOptions"),
    ("rayjob.yaml", "      secretName: wm-rllib-ray-token\n", "", "secretName"),
    ("rayjob.yaml", "generic wm-rllib-ray-token", "generic another", "secret wm-rllib-ray-token"),
    ("rayjob.yaml", 'rayVersion: "2.60.0"', 'rayVersion: "2.59.0"', "rayVersion"),
    ("rayjob.yaml", "version: v2", "version: v1", "v2"),
    ("rayjob.yaml", "restartPolicy: Never", "restartPolicy: Always", "restartPolicy"),
    ("rayjob.yaml", "wm-rllib:0.1.0", "wm-rllib:latest", "fixed tag"),
    ("rayjob.yaml", 'nvidia.com/gpu: "1"}', 'nvidia.com/gpu: "2"}', "num-gpus"),
    ("rayjob.yaml", ', nvidia.com/gpu: "1"', "", "nvidia.com/gpu"),
    ("rayjob.yaml", 'num-cpus: "4"', 'num-cpus: "16"', "num-cpus"),
    ("rayjob.yaml", 'num-cpus: "0"', 'num-cpus: "2"', "head must offer no CPU"),
    ("rayjob.yaml", r'"{\"rollout\": 4}"', '{"rollout": 4}', "no JSON"),
    ("rayjob.yaml", r"\"rollout\"", r"\"other\"", "custom resource rollout"),
    ("rayjob.yaml", "key: spot", "key: other", "spot"),
    ("rayjob.yaml", "maxReplicas: 1", "maxReplicas: 0", "maxReplicas"),
    ("rayjob.yaml", "containers:", "container:", "container"),
    ("rayjob.yaml", "mountPath: /mnt/runs", "mountPath: /mnt/other", "/mnt/runs"),
    ("rayjob.yaml", "claimName: wm-rllib-runs", "claimName: none", "claim none"),
    ("rayjob.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
    ("rayjob.yaml", "limits: {cpu", "limit: {cpu", "limit"),
    ("rayjob.yaml", "pre_stop.py", "other.py", "preStop"),
    ("rayjob.yaml", "terminationGracePeriodSeconds: 150", "terminationGracePeriodSeconds: 10", "Grace"),
    ("rayjob.yaml", 'STOP_WAIT_TIME_S: "120"', 'STOP_WAIT_TIME_S: "3"', "too little time"),
    ("rayjob.yaml", "    env_vars:", "    enviroment:", "unknown key"),
    ("rayjob.yaml", 'num-cpus: "0"', 'num-cpus: "0"\n        dashboard-host: 0.0.0.0', "dashboard-host"),
    ("rayjob.yaml", "name: wm-rllib-acrobot", "name: WM_RLlib", "DNS name"),
    ("rayjob.yaml", "storage: 50Gi", "storage: [50Gi]", "PersistentVolumeClaim"),
    ("rayjob-kueue.yaml", "  suspend: true\n", "", "suspended"),
    ("rayjob-kueue.yaml", "    authOptions:", "    enableInTreeAutoscaling: true\n    authOptions:", "Kueue"),
    ("rayjob-kueue.yaml", "queue-name: training", "queue-name: other", "queue other"),
    ("raycluster.yaml", "redisAddress: wm-rllib-redis", "redisAddress: redis", "redisAddress"),
    ("raycluster.yaml", "type: ClusterIP", "type: LoadBalancer", "from outside"),
    ("raycluster.yaml", "  serviceName: wm-rllib-redis\n", "", "serviceName"),
    ("raycluster.yaml", "generic wm-rllib-redis", "generic other", "secret wm-rllib-redis"),
    ("podmonitor.yaml", "#   kubectl apply", "#   apply", "launch command"),
    ("aws.yaml", "max_workers: 9", "max_worker: 9", "ray up"),
    ("aws.yaml", "head_node_type: head", "head_node_type: none", "ray up"),
    ("aws.yaml", "    min_workers: 1\n", "    min_workers: 7\n", "min_workers"),
    ("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "127.0.0.1"),
    ("aws.yaml", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"),
    ("aws.yaml", "  /home/ray/.ray/auth_token: ~/.ray/wm_rllib_token", "  /x: ~/y", "file_mounts"),
    ("aws.yaml", ", rollout: 8", "", "rollout"),
    ("aws.yaml", " --resume auto", "", "--resume auto"),
    ("local.yaml", "type: local", "type: lokal", "ray up"),
    ("local.yaml", "--dashboard-host=127.0.0.1", "", "127.0.0.1"),
    ("local.yaml", "rollout", "other", "rollout"),
    ("runtime_env.yaml", "excludes:", "exclude:", "unknown key"),
    ("runtime_env.yaml", 'TIME_S: "120"', "TIME_S: 120", "runtime env"),
    ("prometheus.yaml", "service_discovery.json", "discovery.json", "discovery file"),
    ("prometheus.yaml", "127.0.0.1:9090", "0.0.0.0:9090", "127.0.0.1"),
    ("grafana-dashboard.json", "ray_wm_rllib_imagination_ratio", "ray_wm_rllib_ratio", "no metric is called"),
    ("grafana-dashboard.json", '"id": 2,', '"id": 1,', "one id"),
    ("Dockerfile", "ray:2.60.0", "ray:2.59.0", "base image"),
    ("Dockerfile", "USER ray", "USER root", "root"),
    ("Dockerfile", "COPY --chown=ray:users tune_configs", "COPY --chown=ray:users tune_config", "no such file"),
    ("Dockerfile", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=secret", "must not hold a token"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "before", "after", "word"), MUTANTS)
def test_mutant_is_found(name, before, after, word):
    text = (CLUSTER / name).read_text()
    assert before in text
    problems = CHECKS[name](text.replace(before, after))
    assert any(word in problem for problem in problems), problems


@pytest.mark.skipif(rules.CRDS is None, reason="WM_RLLIB_KUBERAY_CRDS names no folder with KubeRay's CRDs")
@pytest.mark.parametrize(
    ("name", "before", "after", "word"),
    [
        ("rayjob.yaml", "entrypoint:", "entryPoint:", "entryPoint"),
        ("rayjob.yaml", "idleTimeoutSeconds: 300", "idleTimeoutSeconds: soon", "idleTimeoutSeconds"),
        ("rayjob.yaml", "upscalingMode: Default", "upscalingMode: Fast", "upscalingMode"),
        ("rayjob.yaml", "groupName: gpu-learner", "group: gpu-learner", "groupName"),
        ("raycluster.yaml", "redisAddress:", "address:", "address"),
    ],
)
def test_mutant_is_found_by_the_crd(name, before, after, word):
    text = (CLUSTER / name).read_text()
    problems = [
        p
        for d in rules.documents(text.replace(before, after))
        if d["apiVersion"] == "ray.io/v1"
        for p in rules._check_crd(d)
    ]
    assert any(word in problem for problem in problems), problems


def test_all_files_start_the_same_run():
    """So that test_job.py, which runs one entry point, has run them all: they differ in where things are alone."""
    commands = []
    for path in CLUSTER.glob("*.yaml"):
        text = path.read_text()
        commands += rules.submitted(text)
        if CHECKS.get(path.name) is rules.check_kubernetes:
            commands += [d["spec"]["entrypoint"] for d in rules.documents(text) if d["kind"] == "RayJob"]
    assert len(commands) == 6
    found = {re.sub(r"--run-dir \S+", "--run-dir X", shlex.join(shlex.split(command))) for command in commands}
    assert {command.replace("/opt/wm_rllib/", "").replace(" --address auto", "") for command in found} == {
        "python -m wm_rllib train --config cluster/train.yaml --run-dir X --resume auto"
    }


def test_training_asks_for_what_the_clusters_offer():
    settings = read_yaml(CLUSTER / "train.yaml")
    wanted = settings["env_runners"]["num_env_runners"] + settings["dreamers"]["num_dreamers"]
    for name in ("rayjob.yaml", "rayjob-kueue.yaml", "raycluster.yaml"):
        document = rules.documents((CLUSTER / name).read_text())[0]
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        [spot] = [group for group in spec["workerGroupSpecs"] if group["groupName"] == "spot-rollout"]
        assert 4 * spot["maxReplicas"] >= wanted, name
    assert settings["device"] == "cuda" and settings["ppo"]["num_gpus_per_learner"] == 1
    assert settings["dreamers"]["num_cpus_for_replay"] == 0, "the head offers no CPU, and the replay belongs there"
