"""Provenance of a run: settings, versions, command lines, and digests of all results, tied together by an RO-Crate.

The crate follows the Workflow Run Crate profile 0.5 (https://w3id.org/ro/wfrun/workflow/0.5); that of `n4flow run`,
which has no workflow file, the Process Run Crate profile 0.5.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from typing import Any

from n4flow.io.address import Address, located
from n4flow.io.publishing import CHECKSUMS_NAME, MASK_NAME
from n4flow.pipeline.parameters import schema
from n4flow.pipeline.timing import dumps
from n4flow.report.summary import INDEX_NAME, MULTIQC_NAME, SUMMARY_NAME, index_page, multiqc_table

CRATE_NAME = "ro-crate-metadata.json"
INFO = "pipeline_info"
CRATE_SUM = "ro-crate-metadata.json.sha256"  # what `sha256sum --check` reads in outdir
WRITTEN_INFO = ("run.json", "parameters.json", "versions.tsv", MULTIQC_NAME)
WORKFLOW_INFO = ("main.nf",)
ENGINE_INFO = ("trace.tsv", "timeline.html", "nextflow_report.html")  # Nextflow completes them after everything else
PROFILES = "https://w3id.org/ro/wfrun"
WORKFLOW_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"


@dataclass(frozen=True)
class Run:
    """What is known about a run besides its results.

    Parameters
    ----------
    command : str
        The command line that started it.
    parameters : mapping
        Resolved parameters.
    inputs : sequence of str
        Paths that were read.
    versions : str
        Tab-separated lines: process, container, tool, version.
    details : mapping
        Whatever else the engine says about the run: its own version, profile, session.
    workflow : path, optional
        The main script, where a workflow engine ran it.
    """

    command: str
    parameters: Mapping[str, Any]
    inputs: Sequence[str]
    versions: str
    details: Mapping[str, Any] = field(default_factory=dict)
    workflow: Path | None = None


def sample_digests(checksums: Path) -> dict[str, str]:
    """Return the digest of each store that a `checksums.json` lists: the SHA-256 of the digests of its levels."""
    stores = json.loads(checksums.read_text(encoding="utf-8"))["stores"]
    return {
        name: hashlib.sha256("".join(level["digest"] for level in store["levels"]).encode()).hexdigest()
        for name, store in stores.items()
    }


def write_provenance(outdir: Path, run: Run, samples: Sequence[Path]) -> None:
    """Write `pipeline_info`, the index of samples and the RO-Crate of a run.

    Parameters
    ----------
    outdir : path
        Root of the crate, where results are or will be.
    run : Run
    samples : sequence of path
        The `checksums.json` of each sample, and its `summary.json`.
    """
    found = sorted(
        (json.loads(path.read_bytes()) for path in samples if path.name == SUMMARY_NAME), key=itemgetter("sample")
    )
    summaries = [row for one in found for row in one.get("channels", [one])]
    samples = [path for path in samples if path.name == CHECKSUMS_NAME]
    info = outdir / INFO
    info.mkdir(parents=True, exist_ok=True)
    for name in (*WORKFLOW_INFO, *ENGINE_INFO):  # of an earlier run of the workflow
        (info / name).unlink(missing_ok=True)
    details = {"command": run.command, "inputs": list(run.inputs), **run.details}
    (info / "run.json").write_text(dumps(details) + "\n", encoding="utf-8")
    (info / "parameters.json").write_text(dumps(dict(run.parameters)) + "\n", encoding="utf-8")
    (info / "versions.tsv").write_text(run.versions, encoding="utf-8")
    (info / MULTIQC_NAME).write_text(multiqc_table(summaries), encoding="utf-8")
    (outdir / INDEX_NAME).write_text(index_page(summaries), encoding="utf-8")
    if run.workflow is not None:
        shutil.copyfile(run.workflow, info / "main.nf")
    crate = _crate(outdir, run, samples)
    (outdir / CRATE_NAME).write_text(dumps(crate.metadata.generate()) + "\n", encoding="utf-8")
    (info / CRATE_SUM).write_text(crate_sum(outdir), encoding="utf-8")


def crate_sum(outdir: Path) -> str:
    """Return the line that vouches for the RO-Crate of a run, as `sha256sum` writes it."""
    return f"{hashlib.sha256((outdir / CRATE_NAME).read_bytes()).hexdigest()}  {CRATE_NAME}\n"


def _crate(outdir: Path, run: Run, samples: Sequence[Path]) -> Any:
    from rocrate.rocrate import ROCrate

    crate = ROCrate(gen_preview=False, version="1.1")  # the one that the profiles are based on
    crate.metadata.extra_terms["sha256"] = "https://schema.org/sha256"  # younger than the crate's context
    crate.name = f"n4flow results: {', '.join(json.loads(sample.read_bytes())['sample'] for sample in samples)}"
    crate.description = "Serial-section volumes with even intensity, the recipes that made them so, and reports"
    crate.license = "that of the input data"
    crate.datePublished = datetime.now(UTC)
    info = [_file(crate, f"{INFO}/{name}", outdir / INFO / name) for name in WRITTEN_INFO]
    info.append(_file(crate, INDEX_NAME, outdir / INDEX_NAME))
    profiles = [(f"{PROFILES}/process/0.5", "Process Run Crate", "0.5")]
    if run.workflow is not None:
        profiles.append((f"{PROFILES}/workflow/0.5", "Workflow Run Crate", "0.5"))
        profiles.append((WORKFLOW_CRATE, "Workflow RO-Crate", "1.0"))
    crate.root_dataset["conformsTo"] = [
        _add(crate, uri, "CreativeWork", name=name, version=version) for uri, name, version in profiles
    ]
    instrument = _instrument(crate, outdir, run)
    # The inputs lie outside the crate, so they are works that are spoken of, and no data of it.
    paths = [located(path) for path in run.inputs]
    objects = [
        _add(
            crate, str(path) if isinstance(path, Address) else path.absolute().as_uri(), "CreativeWork", name=path.name
        )
        for path in paths
    ]
    for name, value in run.parameters.items():
        stated = "null" if value is None else value
        objects.append(_add(crate, f"#setting-{name}", "PropertyValue", name=name, value=stated))
        if run.workflow is not None:
            objects[-1]["exampleOfWork"] = crate.get(f"#parameter-{name}")
    crate.root_dataset["mentions"] = [
        _add(
            crate,
            "#run",
            "CreateAction",
            name="run of n4flow",
            description=run.command,
            endTime=datetime.now(UTC).isoformat(timespec="seconds"),
            actionStatus="http://schema.org/CompletedActionStatus",
            instrument=instrument,
            object=[*objects, *info],
            result=[entity for sample in samples for entity in _results(crate, sample)],
        )
    ]
    return crate


def _add(crate: Any, identifier: str, kind: str, **properties: Any) -> Any:
    """Add an entity that is no data of the crate."""
    from rocrate.model import ContextEntity

    return crate.add(ContextEntity(crate, identifier, properties={"@type": kind, **properties}))


def _instrument(crate: Any, outdir: Path, run: Run) -> Any:
    version = metadata.version("n4flow")
    if run.workflow is None:
        return _add(crate, "#n4flow", "SoftwareApplication", name="n4flow", softwareVersion=version)
    path = outdir / INFO / "main.nf"
    workflow = crate.add_workflow(dest_path=f"{INFO}/main.nf", main=True, lang="nextflow", properties=_sums(path))
    workflow["name"], workflow["version"] = "n4flow", version
    workflow["license"] = "https://spdx.org/licenses/BSD-3-Clause"
    workflow["creator"] = _add(crate, "#authors", "Organization", name="n4flow authors")
    for name, rule in schema().items():
        workflow.append_to("input", _add(crate, f"#parameter-{name}", "FormalParameter", **_formal(name, rule)))
    for name, described in (("store", "The corrected volume"), ("mask", "The tissue mask")):
        made = {"name": name, "description": described, "additionalType": "Dataset", **FORMAL}
        workflow.append_to("output", _add(crate, f"#{name}", "FormalParameter", **made))
    return workflow


FORMAL = {"conformsTo": {"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"}}
TYPES = {"integer": "Integer", "number": "Float", "string": "Text", "boolean": "Boolean"}


def _formal(name: str, rule: Mapping[str, Any]) -> dict[str, Any]:
    kind = rule["type"] if isinstance(rule["type"], str) else rule["type"][0]
    described = {"name": name, "description": rule["description"], "additionalType": TYPES[kind]}
    default = {"defaultValue": rule["default"]} if rule.get("default") is not None else {}
    return {**described, "valueRequired": name == "input", **default, **FORMAL}


def _results(crate: Any, checksums: Path) -> list[Any]:
    stated, digests = json.loads(checksums.read_bytes()), sample_digests(checksums)
    sample, made = stated["sample"], []
    for name, digest in digests.items():
        described = {"name": name, "additionalType": "OME-Zarr", "identifier": digest}
        store = crate.add_dataset(dest_path=f"{sample}/{name}/", properties=described)
        if crate.get(formal := "#mask" if Path(name).name == MASK_NAME else "#store") is not None:
            store["exampleOfWork"] = crate.get(formal)
        made.append(store)
    for name, digest in stated["files"].items():
        if not any(name.startswith(f"{store}/") for store in digests):
            properties = {"name": name, "sha256": digest}
            made.append(crate.add_file(dest_path=f"{sample}/{name}", properties=properties))
    return [*made, _file(crate, f"{sample}/{CHECKSUMS_NAME}", checksums)]


def _file(crate: Any, name: str, path: Path) -> Any:
    return crate.add_file(dest_path=name, properties={"name": Path(name).name, **_sums(path)})


def _sums(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "contentSize": str(len(content))}
