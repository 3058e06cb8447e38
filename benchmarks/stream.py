"""Compare the passes over full resolution with reading alone and with a plain copy of the same store, in one run.

    python benchmarks/stream.py --out benchmarks/results/stream.json          # 1.3 Gvoxel: five minutes on 2 cores
    python benchmarks/stream.py --quick                                       # 40 Mvoxel, one round: the ratios alone
    python benchmarks/stream.py --planes 16 --side 10000                      # wide planes
    python benchmarks/stream.py --planes 640 --side 5632 --linked --passes    # 20 Gvoxel, the chain alone; 55 GB free
    python benchmarks/stream.py --table benchmarks/results/stream.json        # the results as Markdown

A phantom (uint16) of 32 planes is repeated along Z, block by block; shorter volumes are its first planes. Every
measurement runs in a process of its own, after a warm-up on a tiny volume, so its peak resident memory is that of one
pass with Python and the compiled kernels. Passes take turns; times are medians, and ratios are medians of the ratios
within a round. On a machine that is shared with other work, ratios of CPU seconds are more reliable than ratios of
seconds.

* read: reads every voxel of level 0 once, in the blocks of the passes.
* count: reads, and counts the voxels of each plane by their value. Exact statistics cannot do with less.
* copy: reads, and writes a store like the input, uint16 with its pyramid; `copy_float32` writes float32.
* shrink, statistics, render: the passes of the workflow. `render` writes uint16, `render_float32` float32, both with
  the tissue mask beside the image.
* rewrite, rewrite_float32: reads, and writes what the same RENDER wrote, from memory, with its pyramid and mask: what
  any renderer must do.
* chain: `n4flow.run` as a whole, with bias fields and report; the seconds of its stages are in the results. Its ratios
  are to two readings and a copy, to SHRINK, PLANE_STATISTICS and RENDER, and to five of the peers' stages.
* peers: reads the volume and writes it again by Zarr's own pipeline, as one stage of other software does. A chain of
  such stages has five: bias field, normalisation, matching, smoothing along Z, and the pyramid.

`--codec zstd` compresses the input and its copy by Blosc's zstd; RENDER writes LZ4 as always. `--linked` makes the
files of a long volume links to those of the phantom, so that it needs the disk space of 32 planes. `--cold` drops the
files from the page cache before each measurement, as if the volume were larger than memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

PASSES = (
    *("read", "count", "copy", "copy_float32", "shrink", "statistics", "render", "render_float32"),
    *("rewrite", "rewrite_float32", "peers"),
)
THREE = ("shrink", "statistics", "render")
BESIDE = {
    "count": "read",
    "shrink": "read",
    "render": "rewrite",
    "render_float32": "rewrite_float32",
    "rewrite": "copy",
    "rewrite_float32": "copy_float32",
    "statistics": "count",
    "peers": "copy",
}
PEER_STAGES = 5
PLANES_PER_SECTION = 8
PERIOD = 32  # planes of the phantom, which is repeated: a longer phantom would differ only in its noise
WIDE = 1 << 26  # voxels of a plane; larger planes are noise on a smooth shape, because a phantom would take too long


# ------------------------------------------------------------------------------------------------------------- volumes


def write_input(path: Path, planes: int, side: int) -> None:
    """Write the synthetic volume, uint16."""
    from n4flow.phantom.options import PhantomOptions
    from n4flow.phantom.store import Phantom

    if side * side < WIDE:
        few = path.with_name(f"period_of_{path.name}")
        sections = -(-min(planes, PERIOD) // PLANES_PER_SECTION)
        size = (side, side)
        Phantom(PhantomOptions(sections=sections, planes=PLANES_PER_SECTION, size=size, dtype="uint16")).write(few)
        repeat(few, path, planes)
        shutil.rmtree(few)
        few.with_name(few.name.removesuffix(".ome.zarr") + ".sections.tsv").unlink()
        return
    _copy(path, (planes, side, side), "uint16", partial(_noisy_rows, side=side, rng=np.random.default_rng(0)))


def compress_by(codec: str) -> None:
    """Make this process compress chunks as n4flow does (`lz4`), or by `zstd`, level 3, with bit shuffle."""
    from n4flow.io.omezarr import shards
    from n4flow.io.omezarr import store as omezarr

    if codec == "zstd":
        for module in cast(list[Any], [omezarr, shards]):
            module.CODEC, module.LEVEL = codec, 3


def _noisy_rows(z: int, y: int, rows: int, *, side: int, rng: np.random.Generator) -> np.ndarray:
    grid_y, grid_x = (np.linspace(-1, 1, side, dtype=np.float32)[part] for part in (slice(y, y + rows), slice(None)))
    radius = np.hypot(grid_y[:, None], 1.2 * grid_x[None])
    level = np.where(radius < 0.7, 9000 - 3000 * radius, 2500) * (1 + 0.1 * grid_x[None])
    speckle = rng.integers(900, 1100, (8, rows, side), dtype=np.uint16)
    return (level[None] * speckle / 1000).astype(np.uint16)


def _copy(path: Path, shape: tuple[int, int, int], dtype: str, rows_of: Callable[[int, int, int], np.ndarray]) -> None:
    from n4flow.io.omezarr.planning import plan_layout
    from n4flow.io.omezarr.slab_writer import SlabWriter
    from n4flow.io.omezarr.store import create_store

    layout = plan_layout(shape, dtype, (50.0, 25.0, 25.0))
    create_store(path, layout)
    for start in range(0, shape[0], layout.slab_planes):
        stop = min(shape[0], start + layout.slab_planes)
        with SlabWriter(path, layout, start, stop) as writer:
            for z in range(start, stop, 8):
                for y in range(0, shape[1], 256):
                    rows = rows_of(z, y, min(256, shape[1] - y))
                    writer.write(rows[: min(8, stop - z)], z, y)


def link(source: Path, target: Path, planes: int) -> None:
    """Make a store of `planes` planes, with level 0 only, whose files are links to the repeated files of `source`."""
    array, group = (json.loads((source / part / "zarr.json").read_text()) for part in ("0", "."))
    depth = array["chunk_grid"]["configuration"]["chunk_shape"][0]
    period, odd = divmod(array["shape"][0], depth)
    if odd or planes % depth:
        msg = f"files of {source} are {depth} planes deep: --linked needs a multiple of that"
        raise SystemExit(msg)
    array["shape"][0] = planes
    image = group["attributes"]["ome"]["multiscales"][0]
    image["datasets"] = image["datasets"][:1]
    for z in range(planes // depth):
        folder = source / "0" / "c" / str(z % period)
        for file in folder.rglob("*"):
            if file.is_file():
                place = target / "0" / "c" / str(z) / file.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, place)
    for part, described in (("0", array), (".", group)):
        (target / part / "zarr.json").write_text(json.dumps(described))


def repeat(source: Path, target: Path, planes: int) -> None:
    """Write a store of `planes` planes that repeats those of `source`."""
    from n4flow.io.open import open_volume

    volume = open_volume(source)
    period = volume.shape[0]

    def rows_of(z: int, y: int, rows: int) -> np.ndarray:
        return volume.read(slice(z % period, z % period + 8), slice(y, y + rows))

    _copy(target, (planes, *volume.shape[1:]), "uint16", rows_of)


# -------------------------------------------------------------------------------------------------------- what is timed


class Job:
    """One volume, and a folder with the files between the stages, as in the workflow's work directory."""

    def __init__(self, store: Path, work: Path) -> None:
        from n4flow.pipeline.parameters import resolve
        from n4flow.pipeline.plan import make_plan

        planes = PLANES_PER_SECTION
        self.store, self.work = store, work
        depth = json.loads((store / "0" / "zarr.json").read_text())["shape"][0]
        self.settings = {"sections": max(1, depth // planes), "backend": "cpu"}
        self.plans = {
            dtype: make_plan(store, resolve({**self.settings, "dtype": dtype}), "volume")
            for dtype in ("input", "float32")
        }
        self.volume = self.plans["input"].volume

    def prepare(self) -> None:
        """Estimate what the passes need; one iteration at each level makes fields of the right size."""
        from n4flow.corrections.histogram_matching import estimate_lookup
        from n4flow.corrections.plane_gain import estimate_plane_gain
        from n4flow.corrections.plane_range import estimate_plane_range
        from n4flow.corrections.recipe import Recipe, save_correction
        from n4flow.pipeline.estimate import Inputs, find_masks, n4_sections
        from n4flow.pipeline.parameters import resolve
        from n4flow.pipeline.passes import shrink_pass, statistics_pass
        from n4flow.statistics.shrunken import ShrunkenFiles

        plan, work = self.plans["input"], self.work
        work.mkdir(parents=True)
        whole = 0, self.volume.shape[0]
        measured, _given = shrink_pass(self.volume, *whole, plan.shrink, recipe=Recipe(), frame=plan.frame)
        measured.save(work / "shrunken.npz")
        shrunken = ShrunkenFiles([work / "shrunken.npz"])
        asked = resolve(
            {"input": str(self.volume.source), "outdir": str(work), "iterations": "1,1,1", "backend": "cpu"}
        )
        tissue, _numbers = find_masks(shrunken, plan.sections, parameters=asked, voxel_um=self.volume.voxel_um or {})
        tissue.save(work / "masks.npz")
        bias = n4_sections(Inputs(plan.sections, shrunken, tissue, voxel_um=self.volume.voxel_um or {}), asked)
        found: list[Any] = []
        histograms = statistics_pass(self.volume, *whole, recipe=Recipe([bias]), tissue=tissue)
        histograms.save(work / "histograms.npz")
        found.append(estimate_plane_range(histograms, plan.sections, 99.9))
        found.append(estimate_lookup(histograms, Recipe(found), plan.sections, 256))
        found.append(estimate_plane_gain(histograms, Recipe(found), plan.sections, 2))
        for number, correction in enumerate([bias, *found]):
            save_correction(correction, work / f"{20 + 10 * number}_{correction.kind}.npz")
        self.render(save=True)
        self.clear()

    def read(self) -> None:
        """Read every voxel."""
        from n4flow.pipeline.blocks import stream

        for _block in stream(self.volume, 0, self.volume.shape[0]):
            pass

    def count(self) -> None:
        """Read, and count each plane's voxels by their value."""
        from n4flow.compute.threads import reuse_threads, run_tasks
        from n4flow.pipeline.blocks import stream

        count = _counter()
        tables = np.zeros((self.volume.shape[0], 2, 1 << 16), np.uint32)
        with reuse_threads():
            for z, _y, block in stream(self.volume, 0, self.volume.shape[0]):

                def plane(i: int, block: np.ndarray = block, z: int = z) -> None:
                    count(block[i].reshape(-1), tables[z + i])

                run_tasks(plane, range(len(block)))

    def copy(self, dtype: str = "input") -> None:
        """Read, and write a store like the input."""
        from n4flow.io.omezarr.slab_writer import SlabWriter
        from n4flow.io.omezarr.store import create_store
        from n4flow.pipeline.blocks import parts

        layout, out = self.plans[dtype].layout, self.work / "copied"
        create_store(out, layout)
        for start, stop in self.plans[dtype].slabs:
            with SlabWriter(out, layout, start, stop) as writer:
                for z, y, part in parts(self.volume, start, stop, layout.levels[0].chunks):
                    writer.write(part, z, y, wait=False)

    def shrink(self) -> None:
        """Run SHRINK."""
        from n4flow.corrections.recipe import Recipe
        from n4flow.pipeline.passes import shrink_pass

        plan = self.plans["input"]
        for start, stop in plan.slabs:
            shrink_pass(self.volume, start, stop, plan.shrink, recipe=Recipe(), frame=plan.frame)

    def statistics(self) -> None:
        """Run PLANE_STATISTICS after the bias fields."""
        from n4flow.corrections.recipe import Recipe, load_correction
        from n4flow.masks.tissue_source import TissueSource
        from n4flow.pipeline.passes import statistics_pass

        recipe = Recipe([load_correction(self.work / "20_bias_field.npz")])
        for start, stop in self.plans["input"].slabs:
            tissue = TissueSource.load(self.masks, planes=(start, stop))
            statistics_pass(self.volume, start, stop, recipe=recipe, tissue=tissue)

    def render(self, dtype: str = "input", *, save: bool = False) -> None:
        """Run RENDER with the whole recipe; also save the shrunken result, as its task does."""
        from n4flow.corrections.recipe import Recipe, load_correction
        from n4flow.masks.tissue_source import TissueSource
        from n4flow.pipeline.finish import create_stores
        from n4flow.pipeline.render import render_slab

        plan = self.plans[dtype]
        recipe = Recipe([load_correction(file) for file in sorted(self.work.glob("[2-9]0_*.npz"))])
        stores = create_stores(self.work / "rendered", plan)
        for start, stop in plan.slabs:
            rendered = render_slab(
                self.volume,
                recipe,
                start,
                stop,
                stores=stores,
                shrink=plan.shrink,
                tissue=TissueSource.load(self.masks, planes=(start, stop)),
            )
            if save:
                rendered.save_after(self.work / f"after_{start}.npz")
            del rendered  # before the next slab comes

    def ready_rewrite(self, dtype: str = "input") -> None:
        """Render, and keep result and mask in memory."""
        from n4flow.corrections.recipe import MASK_NAME
        from n4flow.io.open import open_volume

        self.render(dtype)
        whole = [slice(0, n) for n in self.volume.shape]
        names = f"{self.plans[dtype].sample}.ome.zarr", MASK_NAME
        self.results = [open_volume(self.work / "rendered" / name).read(*whole) for name in names]
        self.clear()

    def rewrite(self, dtype: str = "input") -> None:
        """Read, and write what `ready_rewrite` kept."""
        from n4flow.io.omezarr.slab_writer import SlabWriter
        from n4flow.pipeline.blocks import parts
        from n4flow.pipeline.finish import create_stores

        plan = self.plans[dtype]
        stores = create_stores(self.work / "rendered", plan)

        def held(number: int) -> Callable[[np.ndarray, tuple[int, int, int]], Any]:
            def made(part: np.ndarray, at: tuple[int, int, int]) -> Any:
                box = tuple(slice(start, start + n) for start, n in zip(at, part.shape, strict=True))
                yield self.results[number][box]

            return made

        depth, height, width = plan.layout.levels[0].chunks
        for start, stop in plan.slabs:
            with ExitStack() as stack:
                image, mask = (stack.enter_context(SlabWriter(*store, start, stop)) for store in stores)
                for z, y, part in parts(self.volume, start, stop, (depth, height, width)):
                    image.write(part, z, y, through=held(0), wait=False)
                    mask.write(np.broadcast_to(np.uint8(0), part.shape), z, y, through=held(1), wait=False)

    def peers(self) -> None:
        """Read and write by Zarr's own pipeline."""
        import zarr

        source = zarr.open_array(self.store / "0", mode="r")
        depth, height, width = self.volume.chunks
        target = zarr.create_array(
            self.work / "peers", shape=source.shape, chunks=(depth, height, width), dtype=source.dtype
        )
        for z in range(0, source.shape[0], depth):
            target[z : z + depth] = source[z : z + depth]

    def chain(self) -> dict[str, float]:
        """Run the whole chain; return the seconds of each stage."""
        import n4flow

        result = n4flow.run(self.store, self.work / "results", dtype="input", **self.settings)
        seconds: dict[str, float] = {}
        for stage in result.samples[0].numbers["stages"]:
            seconds[stage["stage"]] = seconds.get(stage["stage"], 0) + stage["seconds"]
        return seconds

    @property
    def masks(self) -> Path:
        """The masks that `prepare` left."""
        return self.work / "masks.npz"

    def call(self, name: str) -> Any:
        """Run a pass by its name."""
        method, _underscore, dtype = name.partition("_")
        return getattr(self, method)(*[dtype] * bool(dtype))

    def ready(self, name: str) -> None:
        """Do what a pass needs before its clock starts."""
        method, _underscore, dtype = name.partition("_")
        getattr(self, f"ready_{method}", lambda *_dtype: None)(*[dtype] * bool(dtype))

    def clear(self) -> None:
        """Remove what the measured passes wrote."""
        for name in ("copied", "rendered", "peers", "results"):
            shutil.rmtree(self.work / name, ignore_errors=True)


@cache
def _counter() -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a compiled function that counts voxels in two tables in turn, because equal neighbours would wait."""
    import numba

    @numba.njit(nogil=True)
    def count(voxels: np.ndarray, table: np.ndarray) -> None:
        for i in range(0, voxels.size - 1, 2):
            table[0, voxels[i]] += 1
            table[1, voxels[i + 1]] += 1

    return count


def measure(name: str, store: Path, work: Path, *, cold: bool, codec: str) -> dict[str, Any]:
    """Time one pass in this process, with the settings of n4flow's commands; return seconds and peak memory."""
    from n4flow.compute.malloc import limit_arenas

    limit_arenas()
    if name not in ("prepare", "peers"):
        warm_up(name)
    job = Job(store, work)
    job.clear()
    job.ready(name)
    os.sync()
    if cold:
        drop(store)
    if name.startswith("copy"):
        compress_by(codec)
    started, cpu = time.perf_counter(), time.process_time()
    stages = job.call(name)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) if name == "prepare" else 0
    job.clear()
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_bytes(), "stages": stages, "bytes": size}


def peak_bytes() -> int:
    """Return the peak resident memory of this process; `getrusage` may return that of its parent process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def warm_up(name: str) -> None:
    """Load compiled kernels by a pass over a tiny volume of the same type."""
    with tempfile.TemporaryDirectory() as folder:
        store, work = Path(folder) / "volume.ome.zarr", Path(folder) / "work"
        write_input(store, 16, 300)
        job = Job(store, work)
        job.prepare()
        job.ready(name)
        job.call(name)


def drop(store: Path) -> None:
    """Drop the files of a store from the page cache."""
    for file in store.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------------------------------------------------- the run


def machine() -> dict[str, Any]:
    """Return the machine, and the versions of the libraries that determine the speed."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return {
        "processor": f"{model or platform.processor()}, {len(os.sched_getaffinity(0))} cores, {vectors}",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} on {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("n4flow", "numpy", "numba", "zarr", "tensorstore", "numcodecs")},
        "load_average_at_start": round(os.getloadavg()[0], 1),
    }


def in_process(name: str, store: Path, work: Path, *, cold: bool, codec: str) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, "--store", str(store), "--work", str(work)]
    command += ["--codec", codec, *(["--cold"] if cold else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all requested volumes, one after the other."""
    root = Path(arguments.work)
    root.mkdir(parents=True, exist_ok=True)
    kept = PERIOD if arguments.linked else max(arguments.planes)
    longest = root / f"volume_{kept}_{arguments.side}_{arguments.codec}.ome.zarr"
    more = link if arguments.linked else repeat
    compress_by(arguments.codec)
    if not longest.exists():
        write_input(longest, kept, arguments.side)
    volumes = []
    for planes in sorted(arguments.planes):
        store = root / f"volume_{planes}_{arguments.side}_{arguments.codec}.ome.zarr"
        if not store.exists():
            more(longest, store, planes)
        volumes.append(one_volume(store, root / f"work_{planes}", arguments))
        if store != longest:
            shutil.rmtree(store)
    return {"machine": machine(), "cold": arguments.cold, "volumes": volumes}


def one_volume(store: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one volume: rounds in which the passes take turns, then the whole chain."""
    shutil.rmtree(work, ignore_errors=True)
    shape = json.loads((store / "0" / "zarr.json").read_text())["shape"]
    stored = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    options = {"cold": arguments.cold, "codec": arguments.codec}
    prepared = in_process("prepare", store, work, **options) if arguments.passes else {"bytes": None}
    rounds: list[dict[str, dict[str, Any]]] = []
    names = [*arguments.passes, *(["chain"] if arguments.chain else [])]
    for _round in range(arguments.repeats if names else 0):
        rounds.append({name: in_process(name, store, work, **options) for name in names})
        print(shape[0], {k: round(v["seconds"], 2) for k, v in rounds[-1].items()}, file=sys.stderr, flush=True)
    gigavoxels = float(np.prod(shape)) / 1e9
    found: dict[str, Any] = {
        "shape": shape,
        "codec": arguments.codec,
        "gigavoxels": gigavoxels,
        "stored_bytes": stored,
        "raw_bytes": int(2 * np.prod(shape)),
        "work_bytes": prepared["bytes"],
        "passes": {name: _summary(rounds, name, gigavoxels) for name in arguments.passes},
    }
    if arguments.chain:
        seconds = statistics.median(one["chain"]["seconds"] for one in rounds)
        cpu = statistics.median(one["chain"]["cpu_seconds"] for one in rounds)
        found["chain"] = {
            **rounds[-1]["chain"],
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_bytes": max(one["chain"]["peak_bytes"] for one in rounds),
            "seconds_per_gigavoxel": seconds / gigavoxels,
            "cpu_seconds_per_gigavoxel": cpu / gigavoxels,
            "ratios": _chain_ratios(rounds, arguments.passes),
        }
    shutil.rmtree(work)
    return found


# What the chain is compared with: by name, how often which pass is run.
CHAIN_BESIDE = {
    "2 read + copy": {"read": 2, "copy": 1},
    "three passes": dict.fromkeys(THREE, 1),
    f"{PEER_STAGES} peers": {"peers": PEER_STAGES},
}


def _chain_ratios(rounds: list[dict[str, dict[str, Any]]], passes: Sequence[str]) -> dict[str, list[float]]:
    """Return by what it is compared with the chain's ratio of seconds, and that of CPU seconds, medians over rounds."""
    found = {}
    for name, beside in CHAIN_BESIDE.items():
        if set(beside) <= set(passes):
            found[name] = [
                statistics.median(
                    one["chain"][clock] / sum(times * one[each][clock] for each, times in beside.items())
                    for one in rounds
                )
                for clock in ("seconds", "cpu_seconds")
            ]
    return found


def _summary(rounds: list[dict[str, dict[str, Any]]], name: str, gigavoxels: float) -> dict[str, Any]:
    seconds = [one[name]["seconds"] for one in rounds]
    found = {
        "seconds": seconds,
        "seconds_per_gigavoxel": statistics.median(seconds) / gigavoxels,
        "cpu_seconds_per_gigavoxel": statistics.median(one[name]["cpu_seconds"] for one in rounds) / gigavoxels,
        "peak_bytes": max(one[name]["peak_bytes"] for one in rounds),
    }
    beside = BESIDE.get(name)
    if beside in rounds[0]:
        found["beside"] = beside
        found["ratio"] = statistics.median(one[name]["seconds"] / one[beside]["seconds"] for one in rounds)
        found["cpu_ratio"] = statistics.median(one[name]["cpu_seconds"] / one[beside]["cpu_seconds"] for one in rounds)
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| planes x side | pass | s / Gvoxel | beside | ratio | CPU s / Gvoxel | ratio | peak MB |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for volume in results["volumes"]:
        where = f"{volume['shape'][0]} x {volume['shape'][1]}{', zstd' if volume['codec'] == 'zstd' else ''}"
        for name, found in volume["passes"].items():
            ratios = [f"{found[key]:.2f}" if key in found else "" for key in ("ratio", "cpu_ratio")]
            wall, cpu = (f"{found[key]:.2f}" for key in ("seconds_per_gigavoxel", "cpu_seconds_per_gigavoxel"))
            cells = (where, name, wall, found.get("beside", ""), ratios[0], cpu, ratios[1])
            lines.append(f"| {' | '.join(cells)} | {found['peak_bytes'] / 1e6:.0f} |")
        if "chain" in volume:
            chain = volume["chain"]
            wall, cpu = (f"{chain[f'{clock}_per_gigavoxel']:.2f}" for clock in ("seconds", "cpu_seconds"))
            for name, ratios in (chain["ratios"] or {"": []}).items():
                first, second = [f"{ratio:.2f}" for ratio in ratios] or ["", ""]
                cells = (where, "chain", wall, name, first, cpu, second)
                lines.append(f"| {' | '.join(cells)} | {chain['peak_bytes'] / 1e6:.0f} |")
        if volume["work_bytes"]:
            share = 100 * volume["work_bytes"] / volume["raw_bytes"]
            lines.append(f"| {where} | work directory | | | | | | {share:.1f} % of the voxels' bytes |")
    return "\n".join(lines)


def ratios(results: dict[str, Any]) -> str:
    """Return the ratios alone, as lines of text: of seconds, and of CPU seconds."""
    lines = []
    for volume in results["volumes"]:
        named = {
            f"{name} / {one['beside']}": (one["ratio"], one["cpu_ratio"])
            for name, one in volume["passes"].items()
            if "beside" in one
        }
        named |= {f"chain / {name}": tuple(both) for name, both in volume.get("chain", {}).get("ratios", {}).items()}
        lines += [f"{name:32s} {wall:6.2f} of seconds {cpu:6.2f} of CPU seconds" for name, (wall, cpu) in named.items()]
    return "\n".join(lines)


def main() -> None:
    """Read the arguments; measure, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, nargs="+", default=[128, 512], help="planes of each volume")
    parser.add_argument("--side", type=int, default=1408, help="voxels of a plane along Y and X")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--passes", nargs="*", choices=PASSES, default=list(PASSES))
    parser.add_argument("--chain", action=argparse.BooleanOptionalAction, default=True, help="the whole chain, too")
    parser.add_argument("--codec", choices=("lz4", "zstd"), default="lz4", help="of the input and its copy")
    parser.add_argument("--linked", action="store_true", help="make long volumes of links to one short one")
    parser.add_argument("--cold", action="store_true", help="drop the input from the page cache before each pass")
    parser.add_argument("--work", default="bench-stream", help="folder for the volumes; the longest one is kept")
    parser.add_argument("--out", help="where the results go, as JSON")
    parser.add_argument("--add", action="store_true", help="keep the other volumes of the file of results")
    parser.add_argument("--quick", action="store_true", help="a small volume, one round; print the ratios, and stop")
    parser.add_argument("--table", help="print the Markdown table of a file of results, and stop")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        places = Path(arguments.store), Path(arguments.work)
        result = measure(arguments.measure, *places, cold=arguments.cold, codec=arguments.codec)
        print(json.dumps(result))
        return
    if arguments.table:
        print(table(json.loads(Path(arguments.table).read_text(encoding="utf-8"))))
        return
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            arguments.planes, arguments.side, arguments.repeats, arguments.work = [32], 1100, 1, folder
            results = benchmark(arguments)
        print(ratios(results))
        return
    results = benchmark(arguments)
    if arguments.add and Path(arguments.out).exists():
        measured = [(volume["shape"], volume["codec"]) for volume in results["volumes"]]
        held = json.loads(Path(arguments.out).read_text(encoding="utf-8"))["volumes"]
        results["volumes"] = [
            *(volume for volume in held if (volume["shape"], volume["codec"]) not in measured),
            *results["volumes"],
        ]
    text = json.dumps(results, indent=1)
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
