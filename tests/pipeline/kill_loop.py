#!/usr/bin/env python3
"""Kills jobs at random moments until so many were killed; what goes on must end with the bytes of an undisturbed job.

usage: kill_loop.py KILLS SEED WHOLE OUTPUT RANKS PROGRAM ARGUMENTS...

WHOLE is the output of an undisturbed job, OUTPUT what the killed ones write, RANKS with how many each is begun, as
"3,3,3,1,2": taken in turn; now and then what was saved is removed before. A kill is SIGKILL to one rank, to all, or to all
with mpirun, a moment after the job's log said that some stage was over, or after it was begun. Prints how many were killed
in which stage, and fails when an output has other bytes, when a rank outlives the others, or when a job that came to its
end did not go on from what was saved before it began.
"""
import collections
import filecmp
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

RANKS_GONE_S, MPIRUN_GONE_S, JOB_S = 300, 30, 3000  # generous: machines that tests run on are busy

# What a job does once its log has said so; the last line of a kind counts.
DOING = {
    None: "starting",
    "plan": "calibrating",
    "checkpoint": "calibrating",
    "forward": "going forward",
    "backward": "going backward",
    "calibrate": "keeping sums",
    "kept": "quantizing",
    "quantize": "allocating",
    "allocate": "writing",
    "write": "validating",
    "validate": "finishing",
}


def last_event(log):
    """The last event that says where the job is; None when there is none yet."""
    last = None
    try:
        with open(log) as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break
                said = json.loads(line)  # each line that is whole, or the log is broken
                event = "kept" if said.get("statistics") else said["event"]
                if "backward" in said:  # layers are streamed
                    event = "backward" if said["backward"] else "forward"
                if event in DOING:
                    last = event
    except FileNotFoundError:
        pass
    return last


def ranks_of(program, output):
    """The processes of a job, mpirun left out."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
            with open(f"/proc/{name}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if words[0] == program and output in words and state not in "ZX":
            found.append(int(name))
    return found


def kill(process):
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def wait_until(condition, seconds, pause=0.01):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return False


class Loop:
    def __init__(self, seed, whole, output, program, arguments):
        self.random = random.Random(seed)
        self.whole, self.output, self.program, self.arguments = whole, output, program, arguments
        self.log, self.err = output + ".log", output + ".err"
        self.counts = collections.Counter()  # (stage, who) -> kills
        self.resumed = self.jobs = self.stayed = 0

    def has_saved(self):
        """Whether the work directory holds what a job can go on from: pipeline/work_directory.h."""
        work = glob.escape(self.output + ".work/")
        data = "calibration.h5", "statistics.h5", "boundary.0.h5", "gradient.*.h5"
        return bool(glob.glob(work + "head")) and any(glob.glob(work + name) for name in data)

    def begin(self, ranks):
        self.saved = self.has_saved()
        for name in self.log, self.err:
            if os.path.exists(name):
                os.remove(name)
        self.err_file = open(self.err, "w")
        # For two seconds after a rank was killed mpirun lets the others live, as users have it; where all are, it need not.
        self.who = self.random.choice(["one rank", "all ranks", "all and mpirun"])
        environment = dict(os.environ, OMPI_MCA_odls_base_sigkill_timeout="1" if self.who == "one rank" else "0")
        command = ["mpirun", "-n", str(ranks), self.program, *self.arguments, "--log", self.log, "--output", self.output]
        self.job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.err_file, env=environment,
                                    start_new_session=True)

    def finish(self):
        """Waits for mpirun and its ranks; mpirun's exit status."""
        if not wait_until(lambda: self.job.poll() is not None, MPIRUN_GONE_S):
            # Open MPI's: see docs/reliability.md. Of decant nothing may be left by then.
            if not wait_until(lambda: not ranks_of(self.program, self.output), RANKS_GONE_S):
                self.fail(f"the ranks {ranks_of(self.program, self.output)} outlive a killed one")
            wait_until(lambda: self.job.poll() is not None, MPIRUN_GONE_S)
            if self.job.poll() is None:
                self.stayed += 1
                os.killpg(self.job.pid, signal.SIGKILL)
                self.job.wait()
        if not wait_until(lambda: not ranks_of(self.program, self.output), RANKS_GONE_S):
            self.fail(f"ranks outlive mpirun: {ranks_of(self.program, self.output)}")
        self.err_file.close()
        with open(self.err) as said:
            resumed = "going on" in said.read()
        if resumed and not self.saved:
            self.fail("a job goes on from nothing")
        if self.saved and not resumed and self.job.returncode == 0:
            self.fail("a job does again what was saved")
        self.resumed += resumed
        return self.job.returncode

    def fail(self, why):
        with open(self.err) as said:
            sys.exit(f"FAILED: after {sum(self.counts.values())} kills: {why}: {said.read()}")

    def strike(self):
        """One kill; nothing when the job was over before."""
        awaited = self.random.choice(list(DOING))
        wait_until(lambda: self.job.poll() is not None or ranks_of(self.program, self.output), JOB_S)
        if awaited:
            order = list(DOING)
            goal = order.index(awaited)
            wait_until(lambda: self.job.poll() is not None or order.index(last_event(self.log)) >= goal, JOB_S, 0.002)
        time.sleep(self.random.random() ** 2 * (1 if awaited is None else 0.1))
        ranks = ranks_of(self.program, self.output)
        if not ranks or self.job.poll() is not None:
            return
        stage = DOING[last_event(self.log)]
        if self.who == "one rank":
            ranks = [self.random.choice(ranks)]
        if self.who == "all and mpirun":
            os.killpg(self.job.pid, signal.SIGSTOP)  # so that it begins no other
            kill(self.job.pid)
            ranks = ranks_of(self.program, self.output)
        for process in ranks:
            kill(process)
        self.counts[stage, self.who] += 1

    def compare(self):
        """An output that has its name is whole, though its job was perhaps killed after that."""
        if not os.path.exists(self.output):
            return
        if not filecmp.cmp(self.whole, self.output, shallow=False):
            self.fail("a job gives other bytes")
        os.remove(self.output)
        self.jobs += 1

    def run(self, kills, ranks):
        turn = 0
        while sum(self.counts.values()) < kills:
            if self.random.random() < 0.25:  # else few would be killed early
                shutil.rmtree(self.output + ".work", ignore_errors=True)
            self.begin(ranks[turn % len(ranks)])
            turn += 1
            before = sum(self.counts.values())
            self.strike()
            status = self.finish()
            if status != 0 and sum(self.counts.values()) == before:
                self.fail(f"a job that was not killed ends with {status}")
            self.compare()
            if turn % 50 == 0:
                print(f"{sum(self.counts.values())} kills so far", file=sys.stderr, flush=True)
        self.begin(ranks[turn % len(ranks)])
        self.job.wait(JOB_S)
        if self.finish() != 0 or not os.path.exists(self.output):
            self.fail("the last job fails")
        self.compare()

    def tell(self):
        whos = ["one rank", "all ranks", "all and mpirun"]
        print(f"{'killed while':<14}", *(f"{who:>15}" for who in whos))
        for stage in dict.fromkeys(stage for stage in DOING.values() if any(self.counts[stage, who] for who in whos)):
            print(f"{stage:<14}", *(f"{self.counts[stage, who]:>15}" for who in whos))
        print(f"{sum(self.counts.values())} kills; {self.resumed} jobs went on from what was saved, {self.jobs} came to an "
              f"end, all with the same bytes; {self.stayed} times mpirun outlived all of its ranks")


def main():
    kills, seed, whole, output, ranks, program, *arguments = sys.argv[1:]
    loop = Loop(int(seed), whole, output, program, arguments)
    loop.run(int(kills), [int(word) for word in ranks.split(",")])
    loop.tell()


main()
