"""Lets calls of decant's ranks fail, one a job, and looks at what becomes of the job. inject.c makes calls fail and says
of what kinds they are; test_sweep.sh is how the tests run this.

First every job runs undisturbed and tells all its calls; the functions that lead to a call say to which stage it
belongs. From these, calls of every stage are chosen at random, and each is made to fail in a job of its own. Then

  all ranks end in time, all with one exit status, or, where a rank had to end the others by MPI_Abort, mpirun with it;
  nothing was lost, that is status 0 and the bytes of an undisturbed job,
  or the status is the documented one, one line says which rank failed and what, the output is missing, or is the older
  file that was there, and nothing is beside it but the documented work directory;
  the same command goes on, without the fault, to the bytes of an undisturbed job.

A container that is whole but cannot be validated is kept, as documented: verify must find no fault in it.
"""

import argparse
import bisect
import collections
import concurrent.futures
import glob
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

RANKS = 3

# Functions that say to which stage a call belongs; the innermost one that is found here decides.
STAGES = {
    "checkpoint": r"decant_calibration_checkpoint_|decant_streamed_checkpoint_|decant_job_keep_statistics|decant_work_directory_|"
    r"decant_job_open_work|decant_checkpoint_rounds_",
    "reduction": r"decant_replica_exchange_",
    "calibrate": r"decant_job_calibrate$",
    "quantize": r"decant_job_quantize",
    "sensitivity": r"decant_job_check_sensitivity|decant_job_measure_sensitivity|decant_job_read_sensitivity_tokens",
    "allocate": r"decant_error_table_choose|decant_job_find_budget|decant_report_allocation",
    "write": r"decant_write_container|decant_container_finish|decant_validation_write|set_attribute",
    "validate": r"decant_job_validate",
    "load": r"decant_job_open$|decant_log_open|decant_job_read_inputs|decant_job_calibrate_from_tokens|decant_ranks_create|"
    r"decant_job_check_budget|decant_ranks_require_equal|decant_job_find_fisher_sums",
}
# Weights travel to a GPU in a thread of their own, whatever the job does meanwhile.
TRAVEL = re.compile(r"work$|_ZL\d+send_weight")
# run_whole_job, or what it was made part of, takes memory itself for the allocation and for nothing else.
ALLOCATION = re.compile(r"(aligned_alloc )?decant_memory_allocate (allocate|run_whole_job|decant_job_run)\b")

# Exit statuses that a failure may have: memory and disk 4, input 3. Where the disk failed a reader may be the first to see it.
STATUSES = {"memory": {4}, "library": {3, 4}, "missing": {3, 4}, "read": {3, 4}, "short": {3, 4}, "end": {3, 4}, "map": {3, 4}}
STATUSES.update({"page": {3}, "create": {4}, "write": {4}, "part": {4}, "space": {4}, "sync": {4}, "rename": {4}})
# The GPU's own: memory 4, failures of the device 5. The line says where the job was, what failed, and what to do.
STATUSES.update({"device_memory": {4}, "launch": {5}, "copy": {5}, "product": {5}, "wait": {5}, "lost": {5}})
DEVICE_KINDS = ("device_memory", "launch", "copy", "product", "wait", "lost")
DEVICE_LINE = re.compile(
    r"decant: rank \d+: [a-z ]+: \S+, (start|calibrate|quantize|sensitivity|write|validate): "
    r".*((CUDA|cuBLAS|cuSPARSE): |no (device|pinned) memory for ).*; (use|the machine's log)"
)
PATIENCE = "did not end within"  # the message of io/patience.c, by a rank that waited for the one that failed
WORK_FILE = re.compile(r"lock|head|calibration\.h5|statistics\.h5|(boundary|layer|gradient)\.\d+\.h5")
OLDER = b"an older output\n"

Fault = collections.namedtuple("Fault", "job rank kind number stage file")
Result = collections.namedtuple("Result", "status errors ranks")  # status None: it did not end; of ranks: killed


class Symbols:
    """The functions of a program, by address."""

    def __init__(self, program):
        listed = subprocess.run(["nm", "-n", program], capture_output=True, text=True, check=True).stdout
        fields = [line.split() for line in listed.splitlines()]
        self.functions = [(int(f[0], 16), f[2].split(".")[0]) for f in fields if len(f) == 3 and f[1] in "tT"]

    def name(self, address):
        """Of the function that a call returns to at this address."""
        at = bisect.bisect(self.functions, (address, ""))
        return self.functions[at - 1][1] if at else "?"

    def unknown(self):
        """What STAGES names and the program does not have; what is no `decant_…` may be part of its caller."""
        names = {name for _, name in self.functions}
        wanted = [part for pattern in STAGES.values() for part in pattern.split("|") if part.startswith("decant_")]
        return [part for part in wanted if not any(re.match(part, name) for name in names)]


def stage_of(names):
    if ALLOCATION.match(" ".join(names)):
        return "allocate"
    for name in names:
        for stage, pattern in STAGES.items():
            if re.match(pattern, name):
                return stage
    if any(TRAVEL.match(name) for name in names):
        return "travel"
    return None  # before a job begins or after it ended


class Job:
    """A command, run in a folder of its own that is made anew each time. {here} in an argument is that folder."""

    def __init__(self, sweep, name, arguments, work=None):
        self.sweep, self.name, self.arguments, self.work = sweep, name, arguments, work
        self.folder = os.path.join(sweep.root, name)
        self.output = os.path.join(self.folder, "out.h5")
        self.expected = self.gpu = None

    def beside(self, worker):
        """The same job in another folder, and on one GPU of those that are there, for the worker of that number."""
        copy = Job(self.sweep, self.name, self.arguments, self.work)
        copy.folder += f".{worker}"
        copy.output = os.path.join(copy.folder, "out.h5")
        copy.expected, copy.gpu = self.expected, worker % self.sweep.gpus if self.sweep.gpus else None
        return copy

    def prepare(self, older):
        for folder in self.folder, self.folder + ".report":
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.sweep.inputs, self.folder)
        if self.work:
            shutil.copytree(self.work, self.output + ".work")
        if older:
            with open(self.output, "wb") as file:
                file.write(OLDER)

    def run(self, older=False, fault=None, ended_by_mpirun=False):
        report = self.folder + ".report"
        os.makedirs(report, exist_ok=True)
        variables = {"LD_PRELOAD": self.sweep.inject, "DECANT_FAULT_FOLDER": self.folder, "DECANT_FAULT_REPORT": report}
        if self.gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpu
        if fault:
            variables.update(DECANT_FAULT_RANK=fault.rank, DECANT_FAULT_KIND=fault.kind, DECANT_FAULT_NUMBER=fault.number)
        # A rank's own status is wanted, so mpirun shall not end the others when one of them ends with a failure; but where
        # the fault is one that MPI does not survive, that is what ends them.
        command = ["mpirun", "-n", str(RANKS)]
        command += ["--mca", "orte_abort_on_non_zero_status", "0"] * (not ended_by_mpirun)
        for name, value in variables.items():
            command += ["-x", f"{name}={value}"]
        command += [self.sweep.program] + [argument.format(here=self.folder) for argument in self.arguments]
        command += ["--output", self.output, "--device", self.sweep.device, "--quiet"] + ["--overwrite"] * older
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        try:
            errors = process.communicate(timeout=self.sweep.seconds)[1]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # mpirun ends its ranks
            return Result(None, process.communicate()[1].splitlines(), [])
        ranks = []
        for rank in range(RANKS):
            path = f"{report}/status.{rank}"
            ranks.append(int(open(path).read()) if os.path.exists(path) else None)
        # With the option above mpirun's own status is 0, unless a rank ended all of them by MPI_Abort.
        return Result(process.returncode or ranks[0], errors.splitlines(), ranks)

    def bytes(self):
        with open(self.output, "rb") as file:
            return file.read()

    def calls(self):
        for rank in range(RANKS):
            with open(f"{self.folder}.report/calls.{rank}") as lines:
                for line in lines:
                    kind, number, file, *addresses = line.split()
                    names = [self.sweep.symbols.name(int(address, 16)) for address in addresses]
                    yield Fault(self, rank, kind, int(number), stage_of(names), file)

    def left_over(self):
        """Files that nobody announced."""
        known = {os.path.join(folder, file) for folder, _, files in os.walk(self.sweep.inputs) for file in files}
        known = {path.replace(self.sweep.inputs, self.folder, 1) for path in known}
        there = {os.path.join(folder, file) for folder, _, files in os.walk(self.folder) for file in files}
        of_work = [path for path in there if os.path.dirname(path) == self.output + ".work"]
        work = {path for path in of_work if WORK_FILE.fullmatch(os.path.basename(path))}
        journal = f"{self.output}.sensitivity.partial"  # of measurements that are finished
        return sorted(there - known - work - {self.output, journal})


class Sweep:
    def __init__(self, arguments):
        self.program, self.inject, self.root = arguments.program, arguments.inject, arguments.folder
        self.device, self.seconds, self.gpus, self.tells = arguments.device, arguments.seconds, arguments.gpus, arguments.tell
        self.symbols = Symbols(self.program)
        if unknown := self.symbols.unknown():
            sys.exit(f"{self.program} has no functions {', '.join(unknown)}, by which sweep.py knows stages")
        self.inputs = os.path.join(self.root, "inputs")
        self.chance = random.Random(arguments.seed)
        os.makedirs(self.inputs)
        for file in "config.json", "model.safetensors", "tokens.npy":
            shutil.copy(os.path.join(arguments.model, file), self.inputs)
        self.findings = []
        self.tally = collections.Counter()
        self.longest = 0  # seconds of a job in which a call failed

    def jobs(self, names):
        """Those of these names, or all."""
        data = ["--model", "{here}", "--calibration", "{here}/tokens.npy", "--text", "{here}/tokens.npy", "--bits", "5"]
        data += ["--micro-batch", "1", "--checkpoint-every", "0"]
        stages = Job(self, "stages", ["run", "--replicas", "1"] + data)
        replicas = Job(self, "replicas", ["run", "--replicas", str(RANKS)] + data)
        streamed = Job(self, "streamed", ["run", "--memory", "streamed", "--replicas", "1"] + data)
        measured = ["--sensitivity", "noise", "--noise-levels", "2", "--sensitivity-check", "3"]
        sensitivity = Job(self, "sensitivity", stages.arguments + measured)
        resumed = (
            ("resumed", stages, "calibrate", "calibration.h5"),
            ("late", stages, "quantize", "statistics.h5"),
            ("streamed_resumed", streamed, "calibrate", "boundary.1.h5"),
            ("streamed_late", streamed, "calibrate", "gradient.*.h5"),
        )
        yield from (job for job in (stages, replicas, streamed, sensitivity) if not names or job.name in names)
        for name, job, stage, file in resumed:
            if not names or name in names:
                yield Job(self, name, job.arguments, self.interrupt(job, stage, file))

    def interrupt(self, job, stage, file):
        """The work directory, with that file, of a job that failed in a stage."""
        work = os.path.join(self.root, file.split(".")[0] + ".work")
        for fault in reversed([call for call in self.look(job) if call[1:3] == (0, "memory") and call.stage == stage]):
            job.prepare(False)
            job.run(False, fault)
            if glob.glob(f"{job.output}.work/{file}"):
                shutil.copytree(job.output + ".work", work)
                return work
        sys.exit(f"no failure of {stage} leaves {file}")

    def look(self, job):
        """Runs it undisturbed, and returns its calls."""
        job.prepare(False)
        result = job.run()
        if result.status != 0:
            sys.exit(f"{job.name} fails undisturbed: {result}")
        job.expected = job.bytes()
        return [call for call in job.calls() if call.stage]

    def choose(self, job, arguments):
        """The faults of a job."""
        groups = collections.defaultdict(list)
        kinds, stages = arguments.kinds.split(","), arguments.stages.split(",")
        for call in self.look(job):
            of_kind = call.kind in kinds if arguments.kinds else call.kind != "library"
            if of_kind and (call.stage in stages or not arguments.stages):
                groups[(call.rank, call.kind, call.stage)].append(call)
        missing = {stage for stage in STAGES if not any(key[2] == stage for key in groups)} - self.absent(job)
        if missing and not arguments.kinds and not arguments.stages:
            self.findings.append(job)
            print(f"{job.name}: no call of it belongs to {missing}; sweep.py does not know its functions any more")
        if arguments.each:
            keys = [key for key in sorted(groups) for _ in range(arguments.each)]
        else:  # one for each rank and stage, and one for each kind
            keys = self.a_few(job, sorted(groups))
        chosen = {self.chance.choice(groups[key]) for key in keys}
        chosen = sorted(chosen, key=lambda fault: fault[1:5])
        self.chance.shuffle(chosen)
        return chosen

    def absent(self, job):
        """Stages that a job has not."""
        absent = {"replicas": {"sensitivity"}, "late": {"reduction", "calibrate", "sensitivity"}, "sensitivity": {"reduction"}}
        return absent.get(job.name, {"reduction", "sensitivity"})

    def a_few(self, job, keys):
        """Of the first job memory for each rank and stage, and one of every other kind; of the others only what it lacks."""
        if job.name == "replicas":
            return [key for key in keys if key[1:] == ("memory", "reduction")]
        if job.name == "sensitivity":
            return 2 * [key for key in keys if key[1:] == ("memory", "sensitivity")]
        if job.name in ("resumed", "late"):
            return [key for key in keys if key[1:] == ("end", "checkpoint")]
        if job.name != "stages":
            return []
        memory = [key for key in keys if key[1] == "memory"]
        others = [[key for key in keys if key[1] == kind] for kind in sorted({key[1] for key in keys} - {"memory"})]
        return memory + [self.chance.choice(group) for group in others]

    def report(self):
        counts = collections.Counter()
        for (_, stage, kind, _, outcome), count in self.tally.items():
            counts[(stage, kind, outcome)] += count
        stages = [stage for stage in (*STAGES, "travel") if any(key[0] == stage for key in counts)]
        print(f"{'faults (told, borne, wrong)':30}" + "".join(f"{stage:>12}" for stage in stages))
        for kind in sorted({key[1] for key in counts}):
            cells = [[counts[(stage, kind, outcome)] for outcome in ("told", "borne", "wrong")] for stage in stages]
            print(f"{kind:30}" + "".join(f"{'-' if not any(cell) else ' '.join(map(str, cell)):>12}" for cell in cells))
        print(f"{sum(counts.values())} faults, {len(self.findings)} findings; the longest job took {self.longest:.1f} s")

    def inject_faults(self, faults, end, at_once):
        """Until the end, several at once."""
        left = list(reversed(faults))

        def work(worker):
            while left and time.monotonic() < end:
                fault = left.pop()
                self.inject_fault(fault._replace(job=fault.job.beside(worker)) if at_once > 1 else fault)

        with concurrent.futures.ThreadPoolExecutor(at_once) as workers:
            list(workers.map(work, range(at_once)))

    def inject_fault(self, fault):
        job, older = fault.job, self.chance.random() < 0.5
        job.prepare(older)
        begin = time.monotonic()
        result = job.run(older, fault)
        self.longest = max(self.longest, time.monotonic() - begin)
        ended_by_mpirun = result.status is None
        if ended_by_mpirun:
            job.prepare(older)
            result = job.run(older, fault, True)
        hit = list(job.calls())
        wrong = self.judge(fault, result, older, ended_by_mpirun) if hit else ["the call was not made again"]
        outcome = "wrong" if wrong else "borne" if result.status == 0 else "told"
        self.tally[(fault.job.name, hit[0].stage if hit else fault.stage, fault.kind, fault.rank, outcome)] += 1
        if not wrong and result.status != 0 and (not os.path.exists(job.output) or job.bytes() == OLDER):
            again = job.run(older)
            if again.status != 0 or job.bytes() != job.expected:
                wrong = [f"the same command does not go on: {again}"]
        if self.tells and not wrong:
            print(f"{describe(fault)}: {outcome}\n  " + "\n  ".join(result.errors[:1]))
        if wrong:
            self.findings.append(fault)
            print(f"{describe(fault)}\n  " + "\n  ".join(wrong + result.errors[:12] + [f"{result.status} {result.ranks}"]), flush=True)

    def judge(self, fault, result, older, ended_by_mpirun):
        job, lines = fault.job, [line for line in result.errors if line.startswith("decant: ")]
        if result.status is None:
            return ["hangs"]
        if result.status == 0:
            right = set(result.ranks) == {0} and not job.left_over() and job.bytes() == job.expected
            return [] if right else [f"status 0, but ranks {result.ranks}, left over {job.left_over()}, or other bytes"]
        wrong = []
        said = DEVICE_LINE.match(lines[0]) if lines else None
        validates = fault.stage == "validate" or (said and said[1] == "validate")
        aborted = ended_by_mpirun or any("MPI_ABORT" in line for line in result.errors)
        allowed = STATUSES[fault.kind] | ({2} if fault.file.endswith(".work/head") else set())  # refused, as work of another job
        if not set(result.ranks) <= {result.status} | ({None} if aborted else set()) or result.status not in allowed:
            wrong.append(f"exit status {result.status}, of the ranks {result.ranks}, not {allowed}")
        if len(lines) != 1 or not (lines[0].startswith(f"decant: rank {fault.rank}: ") or PATIENCE in lines[0]):
            wrong.append(f"not one line that names rank {fault.rank}")
        elif len(lines[0].split(": ", 3)[3]) < 10 or (fault.kind in DEVICE_KINDS and not said):
            wrong.append("the line does not say what failed")
        if job.left_over():
            wrong.append(f"left over: {job.left_over()}")
        if older and job.bytes() != OLDER and not validates:
            wrong.append("the older output was harmed")
        if not older and os.path.exists(job.output) and not validates:
            wrong.append("there is an output")
        if validates and os.path.exists(job.output) and job.bytes() != OLDER:
            if subprocess.run([self.program, "verify", job.output], stdout=subprocess.DEVNULL).returncode != 0:
                wrong.append("what could not be validated is damaged")
        return wrong


def describe(fault):
    return f"{fault.job.name}: rank {fault.rank}, {fault.kind} call {fault.number} ({fault.stage}) on {fault.file}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--inject", required=True, help="the library that inject.c makes")
    parser.add_argument("--model", required=True, help="a folder with config.json, model.safetensors, tokens.npy")
    parser.add_argument("--folder", required=True, help="an empty folder to work in")
    parser.add_argument("--each", type=int, default=0, help="faults for each job, rank, stage and kind; 0: a few of them")
    parser.add_argument("--kinds", default="", help="only these; default: all but library, as HDF5 does not bear it")
    parser.add_argument("--jobs", default="", help="only these")
    parser.add_argument("--stages", default="", help="only these")
    parser.add_argument("--device", default="cpu", help="cuda: all ranks on the GPUs of this machine")
    parser.add_argument(
        "--seconds",
        type=float,
        default=100,  # a job takes two, but machines that tests run on are busy, and MPI is given 80 to open a file
        help="how long a job may take before it counts as hanging",
    )
    parser.add_argument("--at-once", type=int, default=1, help="so many jobs side by side")
    parser.add_argument("--gpus", type=int, default=0, help="jobs side by side take one each of so many GPUs in turn")
    parser.add_argument("--tell", action="store_true", help="print what each job said")
    parser.add_argument("--minutes", type=float, default=1e9, help="no new faults after that")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    sweep = Sweep(arguments)
    end = time.monotonic() + arguments.minutes * 60
    for job in sweep.jobs(arguments.jobs.split(",") if arguments.jobs else []):
        sweep.inject_faults(sweep.choose(job, arguments), end, arguments.at_once)
    sweep.report()
    sys.exit(bool(sweep.findings))


if __name__ == "__main__":
    main()
