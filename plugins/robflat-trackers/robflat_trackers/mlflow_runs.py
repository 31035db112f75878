"""MLflow runs, at $MLFLOW_TRACKING_URI or in `<store>/mlflow`, which all runs of a store share.

The default is MLflow's file store: it needs no database, and the processes of a sweep can write to it at the same time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from robflat_bench.api import RunView
from robflat_trackers.scalars import of_epoch, of_result

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import, which would start to send
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # "in maintenance mode": refused unless asked for

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

ERROR = "robflat.error"
"""The tag with the reason of a failed run."""


class MLflow:
    """One MLflow run for each of our runs.

    The run's folder keeps the MLflow run's id. So a resumed run continues its MLflow run, and a run that starts anew
    (`--fresh`) has another.
    """

    def __init__(self, run: RunView) -> None:
        store = run.folder.resolve().parents[2]  # <store>/<protocol>/<label>/seed-<n>-<key>
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (store / "mlflow").as_uri()
        with FileLock(store / ".mlflow.lock"):  # two processes would create the store, or the experiment, twice
            self.client = MlflowClient(tracking_uri=uri)
            experiment = self._experiment(run.protocol)
        self.id = self._found(run.folder) or self._new(run, experiment)
        self.logged = {
            (metric.key, metric.step)
            for key in self.client.get_run(self.id).data.metrics
            for metric in self.client.get_metric_history(self.id, key)
        }

    def epoch_ends(self, epoch: Mapping[str, Any]) -> None:
        self._log(of_epoch(epoch), epoch["epoch"])

    def evaluation_ends(self, checkpoint: str, result: Mapping[str, Any]) -> None:
        self._log({f"{checkpoint}/{name}": value for name, value in of_result(result).items()}, result["epoch"])

    def ends(self, record: Mapping[str, Any]) -> None:
        last = record["history"][-1]["epoch"]
        self._log({f"budget/{name}": value for name, value in record["budget"].items()}, last)
        self.client.log_dict(self.id, dict(record), "record.json")
        self.client.set_terminated(self.id, "FINISHED")

    def fails(self, error: Exception) -> None:
        self.client.set_tag(self.id, ERROR, str(error))
        self.client.set_terminated(self.id, "FAILED")

    def close(self) -> None:
        """Does nothing: everything is on disk, or at the server, already."""

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def _found(self, folder: Path) -> str | None:
        """The id of the MLflow run that our interrupted run began, unless it was deleted or is at another place."""
        marker = _marker(folder)
        if not marker.is_file():
            return None
        try:
            found = self.client.get_run(marker.read_text("utf-8"))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if found.info.lifecycle_stage != "active":
            return None
        if ERROR in found.data.tags:
            self.client.delete_tag(found.info.run_id, ERROR)
        self.client.update_run(found.info.run_id, status="RUNNING")
        return str(found.info.run_id)

    def _new(self, run: RunView, experiment: str) -> str:
        tags = {
            "robflat.key": run.key,
            "robflat.protocol.version": run.spec["protocol"]["version"],
            "robflat.protocol.hash": run.spec["protocol"]["hash"],
            "robflat.version": metadata.version("robflat-bench"),
        }
        made: str = self.client.create_run(experiment, tags=tags, run_name=f"{run.label} seed {run.seed}").info.run_id
        recipe = {f"recipe.{name}": value for name, value in run.spec["recipe"].items()}
        params = {"method": run.method, "seed": run.seed, "dataset": run.spec["dataset"]["name"], **recipe}
        self.client.log_batch(made, params=[Param(name, str(value)) for name, value in params.items()])
        marker = _marker(run.folder)
        marker.parent.mkdir(exist_ok=True)
        marker.write_text(made, "utf-8")
        return made

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log the numbers that were not logged before an interruption: MLflow would keep a repeated epoch twice."""
        now = int(time.time() * 1000)
        new = {name: value for name, value in numbers.items() if (name, step) not in self.logged}
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in new.items()])


def _marker(folder: Path) -> Path:
    return folder / "observers" / "mlflow-run-id"
