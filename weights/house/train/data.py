"""Conversations for training: book text with facts in it, and questions about them, one conversation per sequence.

Everything is a function of (seed, step): a run that goes on from a checkpoint sees the batches that it would have seen.
"""
from dataclasses import dataclass

import numpy as np

import topics
from tokenizer import IM_END, IM_START
from words import CONTINUED, INTROS, SYSTEMS, TALK, draw, draw_phrase

KINDS = {"single": 0.26, "multi-key": 0.42, "absent": 0.08, "multi-value": 0.06, "table": 0.06, "variable": 0.06, "quote": 0.06}
PASSAGE_TOKENS_MIN = 24
# A conversation comes in up to so many passages, each of so many tokens on average at least.
PASSAGES_MAX, PASSAGE_TOKENS_MEAN = 4, 200
# Shares of questions with a sentence of a book in front of them or behind them, and before which there is other talk.
PREAMBLES, POSTAMBLES, TALKS = 0.08, 0.04, 0.2
# Names that differ in one syllable, in one round of a drill.
DRILL_KEYS_MAX = 16
# Share of a sequence that facts, questions and answers may take.
TOLD_SHARE_MAX = 0.6


@dataclass(frozen=True)
class Stage:
    """`tokens` per sequence, `rows` sequences per step. Once the retrieval loss is below `leave_below`, the next stage begins.

    `drills`: the share of sequences that are drills; `plain`: the share of their rounds in the plainest words; `skips`: the share of
    sequences with skipped positions; `question_tokens`: the range from which a conversation draws how many tokens there are to a question.
    """

    tokens: int
    rows: int
    leave_below: float
    drills: float = 0.0
    plain: float = 0.0
    skips: float = 0.7
    question_tokens: tuple[int, int] = (80, 240)


class Codec:
    """Texts to ids, with the pieces of ChatML at hand."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.im_start, self.im_end = tokenizer.token_to_id(IM_START), tokenizer.token_to_id(IM_END)
        self.assistant, self.newline = self("assistant\n"), self("\n")
        self.stops = {self(stop)[0]: self(f"{stop}\n\n") for stop in ".!?"}

    def __call__(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class Writer:
    """A sequence under construction: ids, and which of them are an answer's."""

    def __init__(self, codec):
        self.codec, self.ids, self.graded = codec, [], []

    def add(self, ids, graded=False):
        self.ids += ids
        self.graded += [graded] * len(ids)

    def user(self, *parts):
        self.add([self.codec.im_start])
        for part in parts:
            self.add(part)
        self.add([self.codec.im_end, *self.codec.newline])

    def assistant(self, answer, graded=True):
        self.add([self.codec.im_start, *self.codec.assistant])
        self.add([*self.codec(answer), self.codec.im_end], graded)
        self.add(self.codec.newline)


def draw_topic(random, names, books, decode, tokens):
    """A topic of a random kind whose size goes with the length of the sequence."""
    kind = random.choice(list(KINDS), p=list(KINDS.values()))
    few = int(min(4, max(1, tokens // 256)))
    many = int(random.integers(2, 3 + min(24, tokens // 48)))
    match kind:
        case "single":
            return topics.single(random, names, int(random.integers(1, few + 1)))
        case "multi-key":
            return topics.multi_key(random, names, many, min(few, many))
        case "absent":
            return topics.absent(random, names, many)
        case "multi-value":
            return topics.multi_value(random, names, 2 if few < 2 else int(random.integers(2, 4)))
        case "table":
            return topics.table(random, names, many, min(few, many))
        case "variable":
            return topics.variable(random, names, int(random.integers(1, 2 + min(2, few))))
        case _:
            return topics.quote(random, names, [decode(ids) for ids in books.sentence_pair(random)])


def encode_topic(random, codec, books, topic):
    """The topic's texts and its questions' as ids."""
    items = [codec(item) for item in topic.items]
    asks = [surround(random, codec, books, q) for q in topic.questions]
    questions = [(codec("user\n" + ask), codec(" " + ask), codec(ask), q.answer) for ask, q in zip(asks, topic.questions)]
    cost = sum(map(len, items)) + sum(2 * len(ask) + 12 + len(codec(answer)) for ask, _, _, answer in questions)
    return items, questions, cost


def surround(random, codec, books, question):
    """The question's text, now and then with a sentence of a book in front of it or behind it."""
    ask, chance = question.ask, random.random()
    if question.kind == "quote" or chance > PREAMBLES + POSTAMBLES:
        return ask
    sentence = codec.tokenizer.decode(books.sentence_pair(random)[0].tolist()).strip()
    return f"{sentence} {ask}" if chance < PREAMBLES else f"{ask} {sentence}"


def interleave(random, books, topics_items, tokens_max):
    """A passage with every topic's items between its sentences, those of one topic in their order. None if there is no room."""
    used = sum(len(item) for items in topics_items for item in items)
    if tokens_max - used < PASSAGE_TOKENS_MIN:
        return None
    joints = books.passage(random, tokens_max - used)
    placed = []
    for items in topics_items:
        cuts = np.sort(random.integers(0, len(joints), len(items)))
        placed += [(int(cut), item) for cut, item in zip(cuts, items)]
    # By joint only: sorting is stable, so items of one topic that share a joint keep their order.
    placed.sort(key=lambda entry: entry[0])
    out, at = [], 0
    for cut, item in placed:
        out += books.ids[joints[at] : joints[cut]].tolist() + item
        at = cut
    return out + books.ids[joints[at] : joints[-1]].tolist()


def ask_after(random, codec, passage, question):
    """Ids of a passage and a question behind it: in the same paragraph, or in one of its own."""
    _, inline, alone, _ = question
    if random.random() < 0.5 and passage[-1] in codec.stops:
        return [passage[:-1], codec.stops[passage[-1]], alone]
    return [passage, inline]


def drill(random, codec, tokens, plain, lexicon=()):
    """Like `conversation`, without books: rounds of some facts and questions about every one of them. The last is cut off."""
    names, writer = topics.Names(random, "train", lexicon), Writer(codec)
    facts_max = 1 + tokens // 48
    while len(writer.ids) < tokens:
        names.split = "plain" if random.random() < plain else "train"
        left, items, questions = int(random.integers(1, facts_max + 1)), [], []
        while left > 0:
            count = int(random.integers(1, min(left, DRILL_KEYS_MAX) + 1))
            topic = topics.multi_key(random, names, count, count)
            items, questions, left = items + topic.items, questions + topic.questions, left - count
        passage = [i for item in random.permutation(items) for i in codec(str(item))]
        random.shuffle(questions)
        writer.user(codec("user\n"), passage, codec(" " + questions[0].ask))
        writer.assistant(questions[0].answer)
        for question in questions[1:]:
            writer.user(codec("user\n" + question.ask))
            writer.assistant(question.answer)
    return writer.ids[:tokens], writer.graded[:tokens]


def conversation(random, codec, books, tokens, question_tokens=Stage.question_tokens):
    """Ids and answer mask of one conversation, `tokens` long both; what is left over at the end is book text behind `<|endoftext|>`."""
    names = topics.Names(random, "train", books.lexicon)
    question_count = max(1, tokens // int(random.integers(*question_tokens)))
    chosen, spent, asked = [], 0, 0
    while asked < question_count:
        encoded = encode_topic(random, codec, books, draw_topic(random, names, books, lambda ids: codec.tokenizer.decode(ids), tokens))
        if spent + encoded[2] > tokens * TOLD_SHARE_MAX:
            if chosen:
                break
            continue
        chosen.append(encoded)
        spent += encoded[2]
        asked += len(encoded[1])
    most = min(PASSAGES_MAX, len(chosen), tokens // PASSAGE_TOKENS_MEAN)
    passage_count = int(random.integers(2, most + 1)) if most >= 2 and random.random() < 0.4 else 1
    cuts = [0, *sorted(random.choice(np.arange(1, len(chosen)), passage_count - 1, replace=False).tolist()), len(chosen)]
    parts = [chosen[a:b] for a, b in zip(cuts, cuts[1:])]
    return assemble(random, codec, books, parts, tokens)


def assemble(random, codec, books, parts, tokens):
    """Turns of a conversation; `parts`: the encoded topics of each passage."""
    plan = []
    waiting = []
    for number, part in enumerate(parts):
        waiting += [question for _, questions, _ in part for question in questions]
        random.shuffle(waiting)
        # Some questions wait until more text has come.
        now = len(waiting) if number == len(parts) - 1 else max(1, int(len(waiting) * random.choice([0.2, 0.5, 0.8])))
        plan.append(([items for items, _, _ in part], waiting[:now]))
        waiting = waiting[now:]
    # Lengths first: whatever the turns leave is the passages'.
    random_state = random.bit_generator.state
    empty = write_turns(random, codec, books, plan, [[codec(".")[0]]] * len(plan))
    room = tokens - len(empty.ids)
    weights = random.dirichlet([1.2] * len(plan)) * 0.8 + 0.2 / len(plan)
    passages = [interleave(random, books, items, int(room * weight)) for (items, _), weight in zip(plan, weights)]
    if any(passage is None for passage in passages):
        return None
    random.bit_generator.state = random_state
    writer = write_turns(random, codec, books, plan, passages)
    rest = tokens - len(writer.ids)
    if rest < 0:
        return None
    start = int(random.integers(0, len(books.ids) - rest))
    if rest > 0:
        writer.add([books.end_of_text, *books.ids[start : start + rest - 1].tolist()])
    return writer.ids, writer.graded


def write_talk(random, codec, books, writer):
    """A turn that asks for nothing: small talk, or sentences of books whose reply is not graded."""
    if random.random() < 0.4:
        said, reply = draw(random, TALK["train"])
        writer.user(codec("user\n" + said))
        return writer.assistant(reply)

    def sentences():
        return codec.tokenizer.decode(np.concatenate(books.sentence_pair(random)[: int(random.integers(1, 3))]).tolist()).strip()

    writer.user(codec("user\n" + sentences()))
    writer.assistant(sentences(), graded=False)


def write_turns(random, codec, books, plan, passages):
    """Draws the small talk and writes everything; equal states of `random` draw the same."""
    writer = Writer(codec)
    if random.random() < 0.1:
        writer.add([codec.im_start, *codec("system\n" + draw(random, SYSTEMS)), codec.im_end, *codec.newline])
    for number, ((_, questions), passage) in enumerate(zip(plan, passages)):
        head = codec("user\n" + (CONTINUED if number > 0 else draw_phrase(random, INTROS, "train", books.lexicon, rough=False)))
        later = questions
        if random.random() < 0.25:
            writer.user(head, passage)
            writer.assistant("I have read it.")
        else:
            writer.user(head, *ask_after(random, codec, passage, questions[0]))
            writer.assistant(questions[0][3])
            later = questions[1:]
        for question in later:
            if random.random() < TALKS:
                write_talk(random, codec, books, writer)
            writer.user(question[0])
            writer.assistant(question[3])
    return writer


def skip_positions(random, tokens, positions_max, share):
    """Positions of a sequence with gaps in it (PoSE): distances as they occur in a context of up to `positions_max`."""
    positions = np.arange(tokens, dtype=np.int64)
    if random.random() < share:
        span = int(2 ** random.uniform(7, np.log2(positions_max)))
        for cut in random.integers(1, tokens, int(random.integers(1, 4))):
            positions[cut:] += int(random.integers(0, span))
    return np.minimum(positions, positions_max - 1)


def batch(seed, step, stage, codec, books, positions_max):
    """Step `step`'s inputs: ids `[rows, tokens + 1]`, graded `[rows, tokens + 1]` (bool), positions `[rows, tokens]`."""
    random = np.random.default_rng([seed, step])
    ids, graded, positions = [], [], []
    while len(ids) < stage.rows:
        if random.random() < stage.drills:
            made = drill(random, codec, stage.tokens + 1, stage.plain, books.lexicon)
        else:
            made = conversation(random, codec, books, stage.tokens + 1, stage.question_tokens)
        if made is None:
            continue
        ids.append(np.array(made[0], np.int64))
        graded.append(np.array(made[1], bool))
        positions.append(skip_positions(random, stage.tokens, positions_max, stage.skips))
    return np.stack(ids), np.stack(graded), np.stack(positions)
