"""What a sweep consists of: its file, its members, and the tasks that make them. Knows nothing of Slurm, mpirun or plots.

Tasks come in three stages, each made from files of the one before:
  parts       Fisher sums of a stretch of a calibration set's sequences, in the order that a seed draws them
  statistics  parts merged: the first N sequences of that order. Sizes of one seed are nested, so nothing is calibrated twice
  members     a model quantized by one method to one number of bits with one statistics file, and validated
"""

from __future__ import annotations

import functools
import shlex
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from job_file import read_job_file

STAGES = ["parts", "statistics", "members"]
OWN = {"calibration", "sequences", "seed", "method", "bits", "output", "ranks", "slurm", "decant", "keep", "model", "text"}
SET_HERE = {"statistics", "json", "overwrite", "log", "config"}
# Options of `decant run` that change what `decant calibrate` does; the others do not make parts stale.
CALIBRATION_OPTIONS = {"fisher", "micro-batch", "activations", "replicas", "device", "full-floats", "threads", "memory",
                       "device-memory", "host-memory", "scratch"}  # fmt: skip
# Options of every run of decant that say when it saves its work, so that no product depends on them.
SAVING_OPTIONS = {"checkpoint-every"}


class SweepError(Exception):
    """The sweep cannot be run; the message says why."""


@dataclass(frozen=True)
class Member:
    calibration: str  # name of the set: its file's, without .npy
    sequences: int
    seed: int
    method: str
    bits: str

    @property
    def statistics(self) -> str:
        return f"{self.calibration}-seed{self.seed}-{self.sequences}"

    @property
    def name(self) -> str:
        return f"{self.statistics}-{self.method}-{self.bits}bits"


@dataclass(frozen=True)
class Drawing:
    """Sequences first … end − 1 of a calibration set in the order that a seed draws them."""

    path: Path
    seed: int
    first: int
    end: int

    def tokens(self) -> np.ndarray:
        tokens = read_tokens(self.path)
        return tokens[np.random.default_rng(self.seed).permutation(len(tokens))[self.first : self.end]]


@dataclass(frozen=True)
class Task:
    """One run of decant. It is done when `product` is there and was made as the task would make it now."""

    stage: str
    name: str
    command: str  # of decant
    settings: str  # a job file's text
    product: Path
    inputs: tuple[Task, ...] = ()  # whose products it reads; those of a merge are its arguments
    drawing: Drawing | None = None  # the tokens of a part
    data_checksum: int = 0  # CRC-32 of the token array that it reads
    saving: str = ""  # more of the job file, which the product does not depend on

    def path(self, suffix: str) -> Path:
        return self.product.with_name(self.name + suffix)

    @property
    def record(self) -> str:
        """All that the product depends on but the model and the program."""
        own = f"{self.command} {self.name} {self.data_checksum:08x}\n{self.settings}"
        return own + "".join(one.record for one in self.inputs)

    @property
    def is_done(self) -> bool:
        done = self.path(".done")
        return self.product.exists() and done.exists() and done.read_text() == self.record


@dataclass
class Sweep:
    file: Path
    output: Path
    model: Path
    text: Path
    sets: dict[str, Path]
    sizes: list[int]
    seeds: list[int]
    methods: list[str]
    bits: list[str]
    ranks: int
    slurm: list[str]  # options of sbatch
    decant: str
    keep: bool  # members' containers
    options: dict[str, str] = field(default_factory=dict)  # passed on to decant

    @property
    def members(self) -> list[Member]:
        return [
            Member(name, size, seed, method, bits)
            for name in self.sets
            for size in self.sizes
            for seed in self.seeds
            for method in self.methods
            for bits in self.bits
        ]

    @property
    def has_guided(self) -> bool:
        """Then statistics hold Hessians too, which the other methods pass over."""
        return any("guided" in method.split(",") for method in self.methods)

    @property
    def calibration_options(self) -> set[str]:
        return CALIBRATION_OPTIONS | ({"guided-groups"} if self.has_guided else set())

    @property
    def saving(self) -> str:
        return job_file({key: value for key, value in self.options.items() if key in SAVING_OPTIONS})

    def tasks(self, stage: str) -> list[Task]:
        if stage == "parts":
            return [self.part(name, seed, i) for name in self.sets for seed in self.seeds for i in range(len(self.sizes))]
        if stage == "statistics":
            return [self.merge(name, seed, i) for name in self.sets for seed in self.seeds for i in range(1, len(self.sizes))]
        return [self.member(member) for member in self.members]

    def stretch(self, index: int) -> tuple[int, int]:
        """Which of the drawn sequences part `index` has: [first, end)."""
        return (self.sizes[index - 1] if index else 0), self.sizes[index]

    def part(self, name: str, seed: int, index: int) -> Task:
        first, end = self.stretch(index)
        label = f"{name}-seed{seed}-{first}to{end}"
        product = self.output / "parts" / f"{label}.h5"
        options = {key: value for key, value in self.options.items() if key in self.calibration_options}
        if self.has_guided:
            options["method"] = "guided"
        settings = {"model": self.model, "calibration": product.with_suffix(".npy"), **options}
        drawing = Drawing(self.sets[name], seed, first, end)
        checksum = checksum_of(self.sets[name])
        return Task("parts", label, "calibrate", job_file(settings), product, (), drawing, checksum, self.saving)

    def merge(self, name: str, seed: int, index: int) -> Task:
        parts = tuple(self.part(name, seed, i) for i in range(index + 1))
        label = f"{name}-seed{seed}-{self.sizes[index]}"
        return Task("statistics", label, "merge", "", self.output / "statistics" / f"{label}.h5", parts)

    def statistics(self, member: Member) -> Task:
        index = self.sizes.index(member.sequences)
        make = self.merge if index else self.part  # the smallest size is one part as it is
        return make(member.calibration, member.seed, index)

    def member(self, member: Member) -> Task:
        statistics = self.statistics(member)
        settings = {
            "model": self.model,
            "statistics": statistics.product,
            "text": self.text,
            "method": member.method,
            "bits": member.bits,
            "seed": member.seed,
            **{key: value for key, value in self.options.items() if key not in SAVING_OPTIONS},
        }
        product = self.output / "members" / f"{member.name}.json"
        checksum = checksum_of(self.text)
        return Task("members", member.name, "run", job_file(settings), product, (statistics,), None, checksum, self.saving)


def job_file(settings: dict[str, object]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


@functools.cache
def checksum_of(path: Path) -> int:
    """CRC-32 of a file."""
    try:
        return zlib.crc32(path.read_bytes())
    except OSError as error:
        raise SweepError(f"{path}: {error.strerror}") from error


def read_tokens(path: Path) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise SweepError(f"{path}: {error}") from error
    if tokens.ndim != 2:
        raise SweepError(f"{path} is not [sequences, length]; make it with launch/tokenize --length")
    return tokens


def numbers(text: str, name: str) -> list[int]:
    try:
        return sorted({int(word) for word in text.split()})
    except ValueError as error:
        raise SweepError(f"{name}: {error}") from error


def rank_count(file: Path, text: str) -> int:
    counts = numbers(text, "ranks")
    if len(counts) != 1 or counts[0] < 1:
        raise SweepError(f"{file}: ranks = {text}: is no whole number from 1 on")
    return counts[0]


def read_sweep(file: Path) -> Sweep:
    given = read_job_file(file)
    missing = [name for name in ("model", "text", "calibration", "sequences", "bits", "output") if not given.get(name)]
    if missing:
        raise SweepError(f"{file} does not say: {', '.join(missing)}")
    if wrong := SET_HERE & given.keys():
        raise SweepError(f"{file}: {', '.join(sorted(wrong))} is the sweep's own business")
    here = file.resolve().parent
    paths = [here / word for word in given["calibration"].split()]
    sweep = Sweep(
        file=file.resolve(),
        output=here / given["output"],
        model=here / given["model"],
        text=here / given["text"],
        sets={path.stem: path for path in paths},
        sizes=numbers(given["sequences"], "sequences"),
        seeds=numbers(given.get("seed") or "0", "seed"),
        methods=list(dict.fromkeys(given.get("method", "kmeans").split())),
        bits=list(dict.fromkeys(given["bits"].split())),
        ranks=rank_count(file, given.get("ranks") or "1"),
        slurm=shlex.split(given.get("slurm", "")),
        decant=given.get("decant", "decant"),
        keep=given.get("keep", "no") == "yes",
        options={name: value for name, value in given.items() if name not in OWN},
    )
    if len(sweep.sets) < len(paths):
        raise SweepError(f"{file}: two calibration sets have one name")
    if sweep.sizes[0] < 1:
        raise SweepError(f"{file}: a size of {sweep.sizes[0]} sequences")
    if sweep.seeds[0] < 0:
        raise SweepError(f"{file}: a seed of {sweep.seeds[0]}")
    for path in paths:
        if (available := len(read_tokens(path))) < sweep.sizes[-1]:
            raise SweepError(f"{path} has {available} sequences, the sweep asks for {sweep.sizes[-1]}")
    return sweep
