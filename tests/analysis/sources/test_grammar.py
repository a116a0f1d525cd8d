"""The built-in sentences: the same everywhere, balanced, distinct, and nothing but the property tells the label."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from house import ROOT

from clsprobe.analysis.sources import SourceOptions, grammar, lexicon, load, load_pairs
from clsprobe.probes.baseline import BASELINES, bag_of_words
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.task import Task

SIDES = ("train", "dev", "test")
# Whoever changes the sentences on purpose writes the new digest here, and says so in the changelog.
DIGEST = "c7d643af779cc2ba6a47673b23de85690f12425ceb259fde481eaec933173be9"
SAME_WORDS = ("bigram_shift", "coordination_inversion", "word_order", "clause_order")
PAIRED = (*SAME_WORDS, "odd_man_out")


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[Task, list[grammar.Phrase]]]:
    """Every task as it is loaded, and the derivation of each of its sentences."""
    trees: dict[str, list[grammar.Phrase]] = {}

    def noted(name: str, *rest: object) -> list:
        rows = rows_of(name, *rest)
        trees.setdefault(name, []).extend(tree for _, _, tree in rows)
        return rows

    rows_of = grammar._generate_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar, "_generate_rows", noted)
        tasks = {task.label: task for task in load("grammar:all", SourceOptions()).tasks}
    return {name: (task, trees[name]) for name, task in tasks.items()}


@pytest.fixture(scope="module")
def tasks(written) -> dict[str, Task]:
    return {name: task for name, (task, _) in written.items()}


def digest(tasks: list[Task]) -> str:
    rows = [
        f"{side}\t{group}\t{label}\t{text}"
        for task in tasks
        for groups in [range(len(task.y)) if task.groups is None else task.groups]
        for side, group, label, text in zip(task.split, groups, task.y, task.texts, strict=True)
    ]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def forms(kinds: dict[str, str]) -> dict[str, tuple[str, str]]:
    """word -> (kind, form), over all sides and targets."""
    form_of = {}
    for words_of in (*map(lexicon.deal_lexicon, SIDES), lexicon.build_targets()):
        for kind in kinds.keys() & words_of.keys():
            for lemma in words_of[kind]:
                form_of |= {text: (kind, form) for form, text in lemma.forms.items()}
    return form_of


NOUN, VERB = forms(lexicon.NOUNS), forms(lexicon.VERBS)


def pairs(task: Task) -> Iterator[tuple[dict[str, str], str]]:
    """(label -> text, side) of every group."""
    assert task.groups is not None
    for group in np.split(np.argsort(task.groups, kind="stable"), len(task.texts) // 2):
        assert len(set(task.groups[group])) == 1
        (side,) = set(task.split[group])
        yield {str(task.y[row]): task.texts[row] for row in group}, side


# --------------------------------------------------------------------------------------------- the same for everyone


def test_the_sentences_are_the_published_ones(tasks):
    assert digest(list(tasks.values())) == DIGEST


def test_the_same_sentences_in_every_process():
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests" / "support")!r}, {os.path.dirname(__file__)!r}]
from test_grammar import digest, grammar
print(digest([grammar.make_task(name, size=360) for name in grammar.PROPERTIES]))"""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == digest([grammar.make_task(name, size=360) for name in grammar.PROPERTIES])


def test_one_property_is_the_same_alone_as_among_all(tasks):
    (alone,) = load("grammar:subject-number", SourceOptions()).tasks
    assert alone.name == "grammar:subject_number"
    assert digest([alone]) == digest([tasks["subject_number"]])


def test_a_seed_gives_other_sentences_of_the_same_kind():
    one, other = (grammar.make_task("word_order", seed=seed) for seed in (0, 1))
    assert len(set(one.texts) & set(other.texts)) < 0.05 * len(one.texts)
    assert digest([other]) == digest([grammar.make_task("word_order", seed=1)])


def test_rows_are_counted():
    loaded = load("grammar:demo:600", SourceOptions())
    assert [task.name for task in loaded.tasks] == [f"grammar:{name}" for name in grammar.DEMO]
    assert loaded.rows == sum(len(task.texts) for task in loaded.tasks) == 600 * len(grammar.DEMO)
    assert set(grammar.DEMO) < set(grammar.PROPERTIES)


def test_all_are_twelve(tasks):
    assert list(tasks) == list(grammar.PROPERTIES)
    assert len(tasks) == 12


# --------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize(("size", "sides"), [("20000", (10_000, 3_332, 6_668)), ("601", (300, 100, 200))])
def test_as_many_as_one_asks_for(size, sides):
    (task,) = load(f"grammar:word_order:{size}", SourceOptions()).tasks
    assert len(set(task.texts)) == len(task.texts) == sum(sides)
    assert tuple(Counter(task.split)[side] for side in SIDES) == sides
    assert len(set(Counter(zip(task.split, task.y, strict=True)).values())) == 3


def test_no_more_than_there_are(monkeypatch):
    """A grammar of few words says that it has run out, rather than searching for ever."""
    few = {kind: lemmas[:2] for kind, lemmas in lexicon.deal_lexicon("train").items()}
    monkeypatch.setattr(lexicon, "deal_lexicon", lambda side: few)
    monkeypatch.setattr(grammar, "MAX_REJECTED", 300)
    monkeypatch.setattr(grammar, "LONGEST", 5)
    with pytest.raises(InputError, match=r"--task: .*hardly more than [\d,]+ different sentences for .* word_order"):
        grammar.make_task("word_order", size=100_000)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tense:12", r"12 sentences are too few for the 2 classes of tense\. Ask for 24 to 1,000,000"),
        ("word_content:359", "too few for the 30 classes of word_content"),
        ("tense:1000001", "1,000,001 sentences are too many"),
        ("tense:", "'' is no number of sentences. Write it as in grammar:tense:3000"),
        ("tense:-5", "'-5' is no number"),
        ("tense:1e3", "'1e3' is no number"),
        ("tense:٣٠٠", "is no number"),
        ("tense:300:1", "'300:1' is no number"),
    ],
)
def test_an_impossible_size_is_refused(spec, message):
    with pytest.raises(InputError, match=rf"--task: .*{message}"):
        load(f"grammar:{spec}", SourceOptions())


@pytest.mark.parametrize("name", ["tens", "", "grammar", "TENSE"])
def test_an_unknown_property_is_refused_with_those_there_are(name):
    with pytest.raises(
        InputError, match=r"--task: unknown property .* One of: sentence_length, .*, all, demo"
    ) as error:
        load(f"grammar:{name}", SourceOptions())
    if name == "tens":
        assert "Did you mean 'tense'?" in str(error.value)


# --------------------------------------------------------------------------------------------------------- all tasks


@pytest.mark.parametrize("name", grammar.PROPERTIES)
def test_sentences_are_distinct_and_classes_balanced(tasks, name):
    task = tasks[name]
    assert len(set(task.texts)) == len(task.texts) == 3000
    assert Counter(task.split) == {"train": 1500, "dev": 500, "test": 1000}
    for side in SIDES:
        counts = Counter(task.y[task.split == side])
        assert set(counts) == set(grammar.PROPERTIES[name].labels)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_noun_or_verb_form_crosses_a_split(tasks):
    of = {}
    for side in (*SIDES, "targets"):
        words_of = lexicon.build_targets() if side == "targets" else lexicon.deal_lexicon(side)
        listed = [form for lemmas in words_of.values() for lemma in lemmas for form in set(lemma.forms.values())]
        assert len(listed) == len(set(listed)), f"{side} lists a form twice"
        of[side] = set(listed)
    for one in of:
        for other in set(of) - {one}:
            assert not of[one] & of[other]
    # In the texts themselves: what two sides share is none of these words.
    everything = set().union(*of.values())
    for name, task in tasks.items():
        for side in SIDES:
            used = {word for text in np.array(task.texts)[task.split == side] for word in words(text)}
            assert used & everything <= of[side] | (of["targets"] if name == "word_content" else set())


def test_verbs_show_their_tense_and_every_side_has_both_kinds():
    for side in SIDES:
        verbs = [lemma.forms for kind in lexicon.VERBS for lemma in lexicon.deal_lexicon(side)[kind]]
        assert all(len(set(forms.values())) == 3 for forms in verbs)
        regular = Counter(forms["past"].endswith("ed") for forms in verbs)
        assert min(regular[True], regular[False]) >= 5


def test_inflection():
    for text, kind, form in [
        ("geese", "animals", "plural"), ("ladies", "people", "plural"), ("boys", "people", "plural"),
        ("foxes", "animals", "plural"), ("goes", "intransitive", "third"), ("watches", "transitive", "third"),
        ("obeyed", "transitive", "past"), ("buys", "handling", "third"), ("wove", "wearing", "past"),
        ("loaves", "food", "plural"), ("sneezed", "intransitive", "past"), ("diaries", "writings", "plural"),
    ]:  # fmt: skip
        assert (NOUN | VERB)[text] == (kind, form)


def test_sentences_look_like_sentences(tasks):
    for task in tasks.values():
        for text in task.texts:
            assert re.fullmatch(r"[A-Z][a-z]*(?:[,;]? [a-z]+)+\.", text), text
            assert 3 <= len(words(text)) <= 28


def test_articles_fit_the_next_word(tasks):
    for name, task in tasks.items():
        for label, text in zip(task.y, task.texts, strict=True):
            if (name, label) != ("bigram_shift", "shifted"):
                for article, following in re.findall(r"\b(an?) (\w)", text.lower()):
                    assert (article == "an") == (following in "aeiou"), text


# ---------------------------------------------------------------------------------------- what each label stands for


def brackets(tree: grammar.Phrase) -> str:
    """ "(S (NP the dog) (VP sleeps))" """
    parts = (brackets(part) if isinstance(part, grammar.Phrase) else part.text for part in tree.parts)
    return f"({tree.label} {' '.join(parts)})"


def fronted(text: str) -> tuple[list[str], str]:
    """What stands before the main clause, and the rest, by the words alone."""
    labels, rest = [], text.rstrip(".")
    for label, starters, end in (
        ("CC", lexicon.COORDINATORS, " "), ("ADVP", lexicon.OPENERS, ", "),
        ("PP", lexicon.NEAR, ", "), ("SBAR", lexicon.SUBORDINATORS, ", "),
    ):  # fmt: skip
        if rest.split()[0].lower().rstrip(",") in starters.split():
            labels.append(label)
            rest = rest.partition(end)[2]
    return labels, rest


def test_sentence_length_is_the_bin_of_the_word_count(tasks):
    for label, text in zip(tasks["sentence_length"].y, tasks["sentence_length"].texts, strict=True):
        low, high = map(int, label.split("-"))
        assert low <= len(words(text)) <= high


def test_word_content_is_the_one_target_in_the_sentence(tasks):
    target_of = {form: lemma.name for lemma in grammar.TARGETS for form in lemma.forms.values()}
    seen = set()
    for label, text in zip(tasks["word_content"].y, tasks["word_content"].texts, strict=True):
        (target,) = [word for word in words(text) if word in target_of]
        assert target_of[target] == label
        seen.add(target)
    assert len(seen) > 2 * 30  # several forms of each
    assert min(Counter(tasks["word_content"].y[tasks["word_content"].split == "train"]).values()) >= 30


def test_tree_depth_is_that_of_the_derivation_and_independent_of_length(written):
    task, trees = written["tree_depth"]
    for label, text, tree in zip(task.y, task.texts, trees, strict=True):
        deepest = nesting = 0
        for character in brackets(tree):
            nesting += (character == "(") - (character == ")")
            deepest = max(deepest, nesting)
        assert int(label) == deepest + 1
        assert words(text) == words(re.sub(r"\([A-Z]+", "", brackets(tree)))
    for side in SIDES:
        rows = task.split == side
        counts = Counter(zip(task.y[rows], (len(words(text)) for text in np.array(task.texts)[rows]), strict=True))
        assert len(counts) == 6 * 5
        assert max(counts.values()) - min(counts.values()) <= 1


def test_top_constituents_can_be_told_from_the_words(tasks):
    frequency = set(lexicon.FREQUENCY.split())
    for label, text in zip(tasks["top_constituents"].y, tasks["top_constituents"].texts, strict=True):
        before, rest = fronted(text)
        if ";" in rest:
            labels = [*before, "S", "S"]
        elif re.search(rf", ({lexicon.COORDINATORS.replace(' ', '|')})\b", rest):
            labels = [*before, "S", "CC", "S"]
        elif "," in rest:
            labels = [*before, "S", "NP", "VP"]
        else:
            saying = next((i for i, w in enumerate(words(rest)) if VERB.get(w, ("",))[0] == "saying"), None)
            main = words(rest)[:saying]
            aside = next((i for i, w in enumerate(main) if w in lexicon.SUBORDINATORS.split()), None)
            labels = [*before, "NP", *(["ADVP"] if frequency & set(main[:aside]) else []), "VP"]
        expected = "_".join(labels)
        assert label == (expected if expected in grammar.TOPS else "OTHER"), text
    assert "OTHER" in tasks["top_constituents"].y
    assert len(set(tasks["top_constituents"].y)) == 20


def test_tense_is_that_of_the_main_verb(written):
    """By the table of verb forms: of the verb the derivation names, and of the only one where there is only one."""
    task, trees = written["tense"]
    alone = 0
    for label, text, tree in zip(task.y, task.texts, trees, strict=True):
        (verbal,) = [part for part in tree.parts if getattr(part, "label", "") == "VP"]
        main = next(word for word in words(brackets(verbal)) if word in VERB)
        assert (VERB[main][1] == "past") == (label == "past"), text
        verbs = [word for word in words(text) if word in VERB]
        if len(verbs) == 1:
            alone += 1
            assert verbs == [main]
    assert alone > 500


def test_subject_number_is_that_of_the_first_noun_of_the_main_clause(tasks):
    attracted = 0
    for label, text in zip(tasks["subject_number"].y, tasks["subject_number"].texts, strict=True):
        rest = fronted(text)[1].rpartition(", ")[2]  # after what was said, where it stands first
        numbers = [NOUN[word][1] for word in words(rest) if word in NOUN]
        assert label == numbers[0], text
        attracted += len(set(numbers)) > 1
    assert attracted > 1000  # other nouns are of the other number


def test_object_number_is_that_of_the_noun_after_the_main_verb(written):
    task, trees = written["object_number"]
    for label, text, tree in zip(task.y, task.texts, trees, strict=True):
        (verbal,) = [part for part in tree.parts if getattr(part, "label", "") == "VP"]
        after = words(brackets(verbal))
        assert after[1] in VERB, text
        assert label == NOUN[next(word for word in after if word in NOUN)][1], text
        assert next(word for word in after[2:] if word != "np") in lexicon.NEUTRAL.split(), text


@pytest.mark.parametrize("name", PAIRED)
def test_every_sentence_stands_with_its_twin_in_one_group(tasks, name):
    task = tasks[name]
    assert task.groups is not None
    assert set(Counter(task.groups.tolist()).values()) == {2}
    for texts, _ in pairs(task):
        assert set(texts) == set(grammar.PROPERTIES[name].labels)
    assert all(tasks[other].groups is None for other in set(tasks) - set(PAIRED))


@pytest.mark.parametrize("name", SAME_WORDS)
def test_twins_have_the_same_words_and_marks(tasks, name):
    for texts, _ in pairs(tasks[name]):
        one, other = (sorted(re.findall(r"\w+|[^\w\s]", text.lower())) for text in texts.values())
        assert one == other


def test_a_shift_swaps_two_neighbours_once(tasks):
    for texts, _ in pairs(tasks["bigram_shift"]):
        before, after = (re.findall(r"\w+|[^\w\s]", texts[label].lower()) for label in ("original", "shifted"))
        first, *others = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        assert others == [first + 1]
        assert after[first : first + 2] == [before[first + 1], before[first]]
        assert first > 0
        assert not {",", ";", "."} & set(after[first : first + 2])


def test_a_swap_that_reads_well_is_not_taken(tasks):
    adjectives = {word for both in lexicon.ADJECTIVES.values() for words in both for word in words.split()}
    adverbs = set(f"{lexicon.MANNER} {lexicon.FREQUENCY}".split())
    for texts, _ in pairs(tasks["bigram_shift"]):
        before, after = (words(texts[label]) for label in ("original", "shifted"))
        one, other = (word for word, now in zip(before, after, strict=True) if word != now)
        assert not {one, other} <= adjectives
        assert not {one, other} <= VERB.keys()
        assert not ({one, other} & adverbs and {one, other} & VERB.keys())


def test_the_odd_word_is_the_wrong_verb_or_the_wrong_object(tasks):
    """Four kinds of verb ask for four kinds of thing; one word of one pair is of another kind, in the same form."""
    replaced = Counter()
    for texts, _ in pairs(tasks["odd_man_out"]):
        before, after = (words(texts[label]) for label in ("original", "odd"))
        (position,) = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        table = VERB if before[position] in VERB else NOUN
        (kind, form), (odd_kind, odd_form) = table[before[position]], table[after[position]]
        assert form == odd_form
        assert kind != odd_kind
        if table is VERB:
            object_kind = next(NOUN[word][0] for word in before[position:] if word in NOUN)
            assert object_kind == lexicon.STRICT[kind] != lexicon.STRICT[odd_kind]
        else:
            verb_kind = next(VERB[word][0] for word in before[position::-1] if word in VERB)
            assert lexicon.STRICT[verb_kind] == kind
        replaced[table is VERB, kind, odd_kind] += 1
    # No kind is odd more often than it is replaced: frequencies of words tell nothing.
    assert len(replaced) == 2 * 12
    assert max(replaced.values()) < 2 * min(replaced.values())


def test_an_inversion_is_undone_by_swapping_the_clauses(tasks):
    between = re.compile(rf", ({lexicon.COORDINATORS.replace(' ', '|')}) ")
    pronouns = {"he", "she", "it", "they", "him", "her", "them"}
    for texts, _ in pairs(tasks["coordination_inversion"]):
        first, conjunction, second = between.split(texts["inverted"].rstrip("."))
        undone = f"{second}, {conjunction} {first[0].lower()}{first[1:]}."
        assert undone[0].upper() + undone[1:] == texts["original"]
        assert pronouns & set(words(first))  # the clause that takes up the other now stands first


def test_word_order_is_that_of_the_person_and_the_animal(tasks):
    verbs = Counter()
    for texts, _ in pairs(tasks["word_order"]):
        for label, text in texts.items():
            beings = [NOUN[word][0] for word in words(text) if NOUN.get(word, ("",))[0] in grammar.BEINGS]
            assert sorted(beings) == ["animals", "people"]
            assert label == f"{beings[0]} first"
            verbs.update(VERB[word][0] for word in words(text) if word in VERB)
    assert min(verbs["transitive"], verbs["intransitive"]) > 1000


def test_clause_order_is_that_of_the_events(tasks):
    connectives = Counter()
    for texts, side in pairs(tasks["clause_order"]):
        for label, text in texts.items():
            (when,) = [word for word in words(text) if word in ("before", "after")]
            leading = words(text)[1] == when
            assert label == ("in order" if leading == (when == "after") else "reversed")
            connectives[side, label, when] += 1
    for side, label, _ in list(connectives):
        assert connectives[side, label, "before"] == connectives[side, label, "after"]


# --------------------------------------------------------------------------------------------- what must not tell it


def in_a_bag(task: Task) -> float:
    """How much better than the commonest class a bag of words reads the test sentences."""
    y = np.unique(task.y, return_inverse=True)[1]
    train, dev, test = (np.flatnonzero(task.split == side) for side in SIDES)
    right = bag_of_words(task.texts, y, train, dev).codes[0, 0, test] == y[test]
    return right.mean() - np.bincount(y[test]).max() / len(test)


@pytest.mark.parametrize("name", [*PAIRED, "tense", "subject_number", "object_number"])
def test_a_bag_of_words_is_at_chance(tasks, name):
    assert abs(in_a_bag(tasks[name])) <= 0.03


@pytest.mark.parametrize("name", SAME_WORDS)
def test_a_twin_that_leaks_would_be_seen(monkeypatch, name):
    """The same grammar, but a third of the twins of one label have "every" for one of their words "the"."""

    def leaking(tree, words, rng):
        twin = sound.twin(tree, words, rng)
        the = [word for word in twin.words if word.text == "the"]
        if the and sound.label(tree) == sound.labels[0] and rng.chance(0.33):
            return twin.replace({the[-1]: grammar.Word("every", "determiner")})
        return twin

    sound = grammar.PROPERTIES[name]
    monkeypatch.setitem(grammar.PROPERTIES, name, replace(sound, twin=leaking))
    task = grammar.make_task(name)
    assert in_a_bag(task) > 0.03
    with pytest.raises(AssertionError):
        test_twins_have_the_same_words_and_marks({name: task}, name)


def test_words_that_give_the_number_away_would_be_seen(monkeypatch):
    """The same grammar with determiners of one number before subjects and objects."""
    plain = grammar._Writer.noun_phrase

    def telling(self, kind, plural, determiners=None):
        return plain(self, kind, plural, determiners or (lexicon.PLURAL if plural else lexicon.SINGULAR))

    monkeypatch.setattr(grammar._Writer, "noun_phrase", telling)
    assert in_a_bag(grammar.make_task("object_number")) > 0.03


def normalised_score(task: Task, name: str) -> float:
    """(accuracy - majority) / (1 - majority) of a baseline on test."""
    train, dev, test = (np.flatnonzero(task.split == side) for side in SIDES)
    codes = np.unique(task.y, return_inverse=True)[1]
    right = (BASELINES[name](task.texts, codes, train, dev).codes[0, 0] == codes)[test].mean()
    majority = np.bincount(codes[test]).max() / len(test)
    return (right - majority) / (1 - majority)


def test_the_baselines_that_solve_a_task_are_declared(tasks):
    assert {name: task.solved_by for name, task in tasks.items() if task.solved_by} == {
        "sentence_length": ("length",),
        "word_content": ("bag_of_words",),
    }
    assert normalised_score(tasks["sentence_length"], "length") > 0.95
    assert normalised_score(tasks["word_content"], "bag_of_words") > 0.95


@pytest.mark.parametrize("name", ["tree_depth", "top_constituents", "tense"])
def test_other_tasks_are_not_solved_by_a_baseline(tasks, name):
    """Depth does not follow from the number of words, nor the parts of a sentence or its tense from its words."""
    assert max(normalised_score(tasks[name], baseline) for baseline in ("length", "bag_of_words")) < 0.6


# -------------------------------------------------------------------------------------------------------- minimal pairs

KING, DOG, CAT, PIE = (
    lexicon.Lemma(name, kind, {"singular": name, "plural": f"{name}s"})
    for name, kind in (("king", "people"), ("dog", "animals"), ("cat", "animals"), ("pie", "food"))
)
SLEEP = lexicon.Lemma("sleep", "intransitive", {"base": "sleep", "third": "sleeps", "past": "slept"})
CHASE = lexicon.Lemma("chase", "transitive", {"base": "chase", "third": "chases", "past": "chased"})
EAT = lexicon.Lemma("eat", "eating", {"base": "eat", "third": "eats", "past": "ate"})
SAY = lexicon.Lemma("say", "saying", {"base": "say", "third": "says", "past": "said"})
MINE = {lemma.name: lemma for lemma in (KING, DOG, CAT, PIE, SLEEP, CHASE, EAT, SAY)}


def read_tree(brackets: str) -> grammar.Phrase:
    """ "(S (NP the dog.singular) (VP sleep.third))" as a tree."""
    stack: list[list] = [[]]
    for token in re.findall(r"\(|\)|[^\s()]+", brackets):
        if token == "(":
            stack.append([])
        elif token == ")":
            label, *parts = stack.pop()
            stack[-1].append(grammar.Phrase(label.text, tuple(parts)))
        else:
            name, _, form = token.partition(".")
            kinds = {"that": "that", "and": "CC", "near": "preposition"}
            word = grammar._inflect(MINE[name], form) if form else grammar.Word(name, kinds.get(name, "determiner"))
            stack[-1].append(word)
    (tree,) = stack[0]
    return tree


@pytest.mark.parametrize(
    ("name", "brackets", "sentence", "twin"),
    [
        ("tense", "(S (NP the king.plural) (VP sleep.base))", "The kings sleep.", "The kings slept."),
        ("tense", "(S (NP the king.singular) (VP sleep.past))", "The king slept.", "The king sleeps."),
        (
            "tense",  # the tense of another clause stays
            "(S (NP the king.singular (SBAR that (S (VP chase.past (NP the dog.singular))))) (VP sleep.third))",
            "The king that chased the dog sleeps.",
            "The king that chased the dog slept.",
        ),
        (
            "tense",
            "(S (NP the king.singular) (VP say.third (SBAR that (S (NP the dog.plural) (VP sleep.past)))))",
            "The king says that the dogs slept.",
            "The king said that the dogs slept.",
        ),
        (
            "tense",  # two verbs share a tense: no twin
            "(S (NP the king.singular) (VP (VP sleep.third) and (VP eat.third (NP the pie.plural))))",
            "The king sleeps and eats the pies.",
            None,
        ),
        ("subject_number", "(S (NP the dog.singular) (VP sleep.third))", "The dog sleeps.", "The dogs sleep."),
        ("subject_number", "(S (NP the dog.plural) (VP sleep.past))", "The dogs slept.", "The dog slept."),
        (
            "subject_number",  # the noun beside it does not agree
            "(S (NP (NP the dog.singular) (PP near (NP the king.plural))) (VP sleep.third))",
            "The dog near the kings sleeps.",
            "The dogs near the kings sleep.",
        ),
        (
            "subject_number",
            "(S (NP the king.singular) (VP (VP sleep.third) and (VP eat.third (NP the pie.plural))))",
            "The king sleeps and eats the pies.",
            "The kings sleep and eat the pies.",
        ),
        (
            "subject_number",  # the verb of a clause of which it is the subject
            "(S (NP (NP the king.singular) (SBAR that (S (VP chase.third (NP the dog.plural))))) (VP sleep.past))",
            "The king that chases the dogs slept.",
            "The kings that chase the dogs slept.",
        ),
        (
            "subject_number",  # and of one of which it is the object
            "(S (NP (NP the king.plural) (SBAR that (S (NP the dog.singular) (VP chase.third)))) (VP sleep.base))",
            "The kings that the dog chases sleep.",
            "The king that the dog chases sleeps.",
        ),
        (
            "object_number",
            "(S (NP the king.singular) (VP eat.third (NP the pie.plural)))",
            "The king eats the pies.",
            "The king eats the pie.",
        ),
        (
            "object_number",
            "(S (NP the king.plural) (VP chase.base"
            " (NP (NP the dog.singular) (SBAR that (S (VP chase.third (NP the cat.singular)))))))",
            "The kings chase the dog that chases the cat.",
            "The kings chase the dogs that chase the cat.",
        ),
    ],
)
def test_a_twin_differs_in_what_the_label_demands(name, brackets, sentence, twin):
    tree, inflect = read_tree(brackets), grammar.PROPERTIES[name].inflect
    other = inflect(tree)
    assert grammar._render(tree) == sentence
    assert (other and grammar._render(other)) == twin


@pytest.mark.parametrize("name", grammar.INFLECTED)
def test_twins_of_the_grammar_change_one_label_and_change_it_back(name):
    prop, words, rng, checked = grammar.PROPERTIES[name], lexicon.deal_lexicon("test"), grammar._Rng("twins"), 0
    while checked < 150:
        tree = grammar._fix_articles(prop.write(grammar._Writer(words, rng)))
        twin = prop.inflect(tree) if prop.label(tree) else None
        if twin is None:
            continue
        checked += 1
        assert {prop.label(tree), prop.label(twin)} == set(prop.labels)
        assert [word.lemma for word in tree.words] == [word.lemma for word in twin.words]
        changed = [(a, b) for a, b in zip(tree.words, twin.words, strict=True) if a is not b]
        assert all(a.text != b.text for a, b in changed if a.form != "past")
        assert prop.carrier(tree) in [a for a, _ in changed]
        for other in {"sentence_length", "tree_depth", "top_constituents", *grammar.INFLECTED} - {name}:
            assert grammar.PROPERTIES[other].label(tree) == grammar.PROPERTIES[other].label(twin)
        assert grammar._render(prop.inflect(twin)) == grammar._render(tree)
        assert grammar._render(grammar._fix_articles(twin)) == grammar._render(twin)


@pytest.mark.parametrize("name", grammar.INFLECTED)
def test_pairs_are_of_lemmas_that_no_text_of_train_or_dev_has(name):
    task = grammar.make_task(name, size=600)
    (pairs,) = load_pairs(f"grammar:{name}:600").values()
    assert len(pairs.texts) == len(pairs.lemmas) == grammar.PAIRS
    assert len({text for pair in pairs.texts for text in pair}) == 2 * grammar.PAIRS
    assert len(set(pairs.lemmas)) >= 20
    learnt = {pairs.carriers[text] for text, side in zip(task.texts, task.split, strict=True) if side != "test"}
    assert not learnt & set(pairs.lemmas)
    assert learnt <= {lemma.name for kind in lexicon.deal_lexicon("train").values() for lemma in kind} | {
        lemma.name for kind in lexicon.deal_lexicon("dev").values() for lemma in kind
    }
    kinds = VERB if name == "tense" else NOUN
    form_of = {text: form for text, (_, form) in kinds.items()}
    for pair, lemma in zip(pairs.texts, pairs.lemmas, strict=True):
        first, second = map(words, pair)
        assert len(first) == len(second)
        changed = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
        assert len(changed) == 1 or name != "tense"
        carrying = [(a, b) for a, b in changed if a in form_of and b in form_of]
        forms = [(form_of[a], form_of[b]) for a, b in carrying]
        assert any(a == "past" != b if name == "tense" else (a, b) == pairs.labels for a, b in forms)
        assert lemma
    for other, labels in pairs.other_labels.items():
        assert other != name
        assert set(labels.values()) == set(grammar.PROPERTIES[other].labels)
        assert all(labels.get(a) == labels.get(b) for a, b in pairs.texts)


@pytest.fixture
def few_pairs(monkeypatch):
    monkeypatch.setattr(grammar, "PAIRS", 40)


@pytest.mark.usefixtures("few_pairs")
@pytest.mark.parametrize("name", SAME_WORDS)
def test_pairs_of_word_order_hold_the_same_words(name):
    (pairs,) = load_pairs(f"grammar:{name}:24").values()
    assert pairs.labels == grammar.PROPERTIES[name].labels
    assert all(sorted(words(a)) == sorted(words(b)) and a != b for a, b in pairs.texts)
    assert not any(pairs.lemmas)


@pytest.mark.usefixtures("few_pairs")
def test_which_properties_have_pairs():
    assert set(load_pairs("grammar:all:240")) == {f"grammar:{name}" for name in (*PAIRED, *grammar.INFLECTED)}
    assert load_pairs("grammar:sentence-length") == load_pairs("file:reviews.csv") == {}
    one, other = (load_pairs(f"grammar:tense:{size}")["grammar:tense"] for size in (60, 66))
    assert one.texts == other.texts
    assert one.digest != other.digest
