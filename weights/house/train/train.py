#!/usr/bin/env python3
"""Trains the house model.

Usage: train.py --size small|base --data FOLDER --out FOLDER --seconds N [--stop-after N] [--resume | --start FILE] [--stages words] [--steps N]

FOLDER of --data holds tokenizer.json and train.npy (see tokenizer.py, books.py). --seconds is the training time of the whole run, over
all its parts; a part ends after --stop-after seconds or at a SIGTERM, and --resume goes on from OUT/checkpoint.pt exactly as if nothing had
happened. The learning rate is constant and falls to zero over the last three tenths. OUT/before-decay.pt is the state before that, from
which a longer run can go on (copy it to checkpoint.pt). OUT/weights.pt, written at the end of a part, has the weights alone in bf16.
--start begins another run, with its own --seconds, from such a file (fresh optimizers) or from a checkpoint; steps count on, so that
it sees other batches. --stages words is for a model that answers already and is to learn other words. OUT/log.jsonl has the losses.
"""
import argparse
import json
import multiprocessing
import os
import signal
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from books import Books
from data import Codec, Stage, batch
from heads import begin_with_retrieval_heads
from model import SHAPES, Llama

# Loss on book text counts so much of the loss on answers.
LANGUAGE_WEIGHT = 0.4
DECAY_SHARE = 0.3
WARM_UP_STEPS = 100
SEED = 1
# Batches are decided this many steps ahead, so that processes can make them meanwhile; part of what a run computes.
AHEAD_STEPS = {"small": 1, "base": 48}
DENSE = (50, 160)
# The shares of the run after which a stage ends even if its loss is still high.
STAGES = {
    "small": [
        (Stage(128, 32, 0.25, drills=1.0, plain=0.8, skips=0.2), 0.05),
        (Stage(256, 16, 0.3, drills=0.5, plain=0.1, question_tokens=DENSE), 0.1),
        (Stage(512, 8, 0.05, drills=0.5, question_tokens=(30, 120)), 0.42),
        (Stage(1024, 4, 0.04, drills=0.3, question_tokens=DENSE), 0.58),
        (Stage(2048, 2, 0.03, drills=0.1, question_tokens=DENSE), 0.7),
        (Stage(4096, 1, 0.0, question_tokens=DENSE), 1.0),
    ],
    "words": [
        (Stage(256, 16, 0.0, drills=0.6, plain=0.05, skips=0.5, question_tokens=DENSE), 0.06),
        (Stage(256, 16, 0.0, drills=0.8, plain=0.5, skips=0.5, question_tokens=DENSE), 0.3),
        (Stage(512, 8, 0.0, drills=0.5, plain=0.25, question_tokens=(30, 120)), 0.52),
        (Stage(1024, 4, 0.0, drills=0.25, question_tokens=DENSE), 0.7),
        (Stage(2048, 2, 0.0, drills=0.1, question_tokens=DENSE), 0.84),
        (Stage(4096, 1, 0.0, question_tokens=DENSE), 1.0),
    ],
    "base": [
        (Stage(256, 512, 0.3), 0.2),
        (Stage(512, 256, 0.2), 0.3),
        (Stage(1024, 128, 0.12), 0.4),
        (Stage(2048, 64, 0.08), 0.55),
        (Stage(8192, 16, 0.0), 0.9),
        (Stage(32768, 4, 0.0), 1.0),
    ],
}
# Share of book tokens whose loss is computed: the head is a third of a small model's work.
LANGUAGE_SHARE = {"small": 0.125, "base": 1.0}
LEARNING_RATE = {"small": 2.5e-3, "base": 1.5e-3}

_worker = {}


def open_worker(folder):
    """Prepares a process that makes batches."""
    _worker["data"] = open_data(folder)


def worker_batch(step, stage, positions_max):
    return batch(SEED, step, stage, *_worker["data"], positions_max)


def open_data(folder):
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    return Codec(tokenizer), Books(np.load(os.path.join(folder, "train.npy")), tokenizer)


class Batches:
    """Batches in order of their steps, each of the stage that was the run's when it was ordered."""

    def __init__(self, folder, positions_max, process_count):
        self.positions_max, self.ordered = positions_max, deque()
        self.data = open_data(folder) if process_count == 0 else None
        # Spawned: a forked process would inherit a CUDA context that it must not touch.
        context = multiprocessing.get_context("spawn")
        options = {"mp_context": context, "initializer": open_worker, "initargs": (folder,)}
        self.pool = ProcessPoolExecutor(process_count, **options) if process_count else None

    def order(self, step, stage_index, stage):
        args = (step, stage, self.positions_max)
        self.ordered.append((step, stage_index, args, self.pool.submit(worker_batch, *args) if self.pool else None))

    def next(self):
        step, stage_index, args, future = self.ordered.popleft()
        made = future.result() if future else batch(SEED, *args[:2], *self.data, self.positions_max)
        return step, stage_index, made

    def pending(self):
        """Steps and stages that are ordered and not taken."""
        return [(step, stage_index) for step, stage_index, _, _ in self.ordered]

    def close(self):
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


class Run:
    """A training run: model, optimizers and everything that decides what the next step does."""

    def __init__(self, args):
        self.args, self.stages = args, STAGES[args.stages or args.size]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(SEED)
        model = Llama(SHAPES[args.size])
        if args.size == "small":
            begin_with_retrieval_heads(model)
        self.model = model.to(self.device)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embeddings" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embeddings" in name]
        rate = LEARNING_RATE[args.size]
        if args.optimizer == "muon":
            muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self.optimizers = [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]
        else:
            self.optimizers = [torch.optim.AdamW(matrices + others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)]
        self.rate = rate
        self.state = {"step": 0, "stage": 0, "tokens": 0, "seconds": 0.0, "retrieval": None, "pending": [], "warm_from": 0}
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
            # Blocks one by one: six lengths of the whole model would take minutes to compile.
            for block in self.model.blocks:
                block.compile(dynamic=False)

    def progress(self):
        """Share of the run that is over."""
        args = self.args
        return self.state["step"] / args.steps if args.steps else self.state["seconds"] / args.seconds

    def rate_factor(self):
        decay = min(1.0, (1.0 - self.progress()) / DECAY_SHARE)
        warm = min(1.0, (self.state["step"] - self.state["warm_from"] + 1) / WARM_UP_STEPS)
        return warm * max(0.01, decay)

    def step(self, made):
        """One step; returns the losses of book text and of answers, and the share of answer tokens that were right."""
        ids, graded, positions = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in made)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * self.rate_factor()
        wanted = graded[:, 1:].clone()
        share = LANGUAGE_SHARE[self.args.size]
        if share < 1:
            # Every so many tokens, from another one each step: no random state to keep.
            wanted[:, self.state["step"] % int(1 / share) :: int(1 / share)] = True
        with torch.autocast(self.device, torch.bfloat16):
            hidden, _ = self.model(ids[:, :-1], positions)
            targets, is_answer = ids[:, 1:], graded[:, 1:]
            if share < 1:
                hidden, targets, is_answer = hidden[wanted], targets[wanted], is_answer[wanted]
            else:
                hidden, targets, is_answer = hidden.flatten(0, 1), targets.flatten(), is_answer.flatten()
            logits = self.model.logits(hidden)
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        answers = is_answer.float()
        retrieval = (losses * answers).sum() / answers.sum()
        language = (losses * (1 - answers)).sum() / (1 - answers).sum()
        (language * LANGUAGE_WEIGHT + retrieval).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        right = ((logits.detach().argmax(-1) == targets).float() * answers).sum() / answers.sum()
        return language.detach(), retrieval.detach(), right.detach()

    def note(self, stage_index, losses):
        """Updates the running retrieval loss and moves on to the next stage where it is time."""
        state, (stage, ends_at) = self.state, self.stages[self.state["stage"]]
        if stage_index != state["stage"]:
            # Batches of the stage before, ordered ahead, say nothing about this one.
            return
        before = state["retrieval"]
        state["retrieval"] = losses[1] if before is None else 0.95 * before + 0.05 * losses[1]
        is_last = state["stage"] == len(self.stages) - 1
        if not is_last and (state["retrieval"] < stage.leave_below or self.progress() > ends_at):
            state["stage"] += 1
            # The new length begins with a loss of its own.
            state["retrieval"] = max(state["retrieval"], stage.leave_below + 0.3)

    def save(self, name):
        """Writes everything that the next part needs; the file is whole or not there."""
        path = os.path.join(self.args.out, name)
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        whole = {"size": self.args.size, "model": self.model.state_dict(), "optimizers": optimizers, "state": self.state}
        torch.save(whole, f"{path}.part")
        os.replace(f"{path}.part", path)

    def save_weights(self):
        """Writes OUT/weights.pt; evaluate.py and export.py read it as they read a checkpoint."""
        weights = {name: weight.bfloat16().cpu() for name, weight in self.model.state_dict().items()}
        whole = {"size": self.args.size, "model": weights, "state": self.state}
        torch.save(whole, os.path.join(self.args.out, "weights.pt"))

    def start_from(self, path):
        """Takes the weights of another run, and its optimizers' states if the file has them; the rate warms up again."""
        whole = torch.load(path, map_location=self.device)
        self.model.load_state_dict(whole["model"])
        for optimizer, state in zip(self.optimizers, whole.get("optimizers", ())):
            optimizer.load_state_dict(state)
        self.state |= {"step": whole["state"]["step"], "tokens": whole["state"]["tokens"], "warm_from": whole["state"]["step"]}

    def load(self, name):
        whole = torch.load(os.path.join(self.args.out, name), map_location=self.device)
        self.model.load_state_dict(whole["model"])
        for optimizer, state in zip(self.optimizers, whole["optimizers"]):
            optimizer.load_state_dict(state)
        self.state = whole["state"]


def train(run, log):
    """Steps until the run or this part of it is over."""
    args, state, stages = run.args, run.state, run.stages
    batches = Batches(args.data, SHAPES[args.size].positions_max, args.processes)
    for step, stage_index in state["pending"]:
        batches.order(step, stage_index, stages[stage_index][0])
    # The step that runs is finished and saved.
    stops = []
    signal.signal(signal.SIGTERM, lambda *_: stops.append(True))
    began = mark = saved = time.monotonic()
    while run.progress() < 1 and time.monotonic() - began < args.stop_after and not stops:
        while len(batches.ordered) < AHEAD_STEPS[args.size]:
            ahead = state["step"] + len(batches.ordered)
            batches.order(ahead, state["stage"], stages[state["stage"]][0])
        _, stage_index, made = batches.next()
        losses = [float(loss) for loss in run.step(made)]
        state["step"] += 1
        state["tokens"] += made[2].size
        state["pending"] = batches.pending()
        was_decaying = 1 - run.progress() < DECAY_SHARE
        now = time.monotonic()
        state["seconds"], mark = state["seconds"] + now - mark, now
        run.note(stage_index, losses)
        if state["step"] % args.log_every == 0:
            line = {key: state[key] for key in ("step", "tokens")}
            line |= {"seconds": round(state["seconds"]), "length": stages[stage_index][0].tokens}
            line |= dict(zip(("language", "retrieval", "right"), (round(loss, 4) for loss in losses)))
            log.write(json.dumps(line) + "\n")
            log.flush()
        if not was_decaying and 1 - run.progress() < DECAY_SHARE:
            run.save("before-decay.pt")
        if now - saved > args.save_every:
            run.save("checkpoint.pt")
            saved = time.monotonic()
    run.save("checkpoint.pt")
    run.save_weights()
    batches.close()


def cut_log(path, step):
    """Takes lines behind `step` out of the log: a part that was killed wrote them after its last checkpoint."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf8") as file:
        kept = [line for line in file if json.loads(line)["step"] <= step]
    with open(path, "w", encoding="utf8") as file:
        file.writelines(kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SHAPES, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=10_800)
    parser.add_argument("--stop-after", type=float, default=float("inf"))
    parser.add_argument("--steps", type=int, default=0, help="length of the run in steps instead of seconds")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    parser.add_argument("--start", metavar="FILE", help="begin with the weights of a weights.pt or a checkpoint")
    parser.add_argument("--stages", choices=STAGES, help="other stages than those of the size")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=0, help="processes that make batches; 0: the training process does")
    parser.add_argument("--save-every", type=float, default=300, help="seconds between checkpoints")
    parser.add_argument("--log-every", type=int, default=10, help="steps between lines of the log")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.out, exist_ok=True)
    run = Run(args)
    if args.resume:
        run.load("checkpoint.pt")
    elif args.start:
        run.start_from(args.start)
    print(f"{run.model.parameter_count()} parameters on {run.device}, from step {run.state['step']}", flush=True)
    log_path = os.path.join(args.out, "log.jsonl")
    cut_log(log_path, run.state["step"])
    with open(log_path, "a", encoding="utf8") as log:
        train(run, log)
    print(f"step {run.state['step']}, {run.state['tokens']} tokens, {run.state['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
