"""The head pod's preStop hook: ask the cluster's running jobs for a checkpoint, and wait until they have ended.

    python cluster/pre_stop.py [http://127.0.0.1:8265]

Kubernetes would end Ray, and Ray its jobs by SIGKILL. A stopped job (`ray job stop`) is a finished one to KubeRay; a
driver that SIGTERM ends exits with 143, its job has failed, and backoffLimit starts it again.
"""

import os
import signal
import sys
import time

import psutil
from ray.job_submission import JobStatus, JobSubmissionClient


def running_drivers(address: str) -> list[psutil.Process]:
    """The drivers of the running jobs at a dashboard's address, which is this machine's."""
    jobs = JobSubmissionClient(address).list_jobs()
    pids = [int(job.driver_info.pid) for job in jobs if job.status == JobStatus.RUNNING and job.driver_info]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def main(address: str) -> None:
    """Ask all of them, and wait: the pod's terminationGracePeriodSeconds is the limit."""
    drivers = running_drivers(address)
    for driver in drivers:
        os.kill(driver.pid, signal.SIGTERM)
    psutil.wait_procs(drivers)
    if drivers:
        time.sleep(2)  # for the job's status to be written, and read by the operator


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8265")
