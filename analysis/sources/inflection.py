"""Minimal pairs of a treebank: one word in another form of its lemma, and with it the words that agree.

1. The word that carries a property gets the other value of its feature (``Tense``, ``Number``) and keeps the others.
2. Its new form stands in the treebank, as the only one of this lemma, part of speech and features; so do the forms of
   the words that agree with it. Nothing is inflected by rule.
3. A sentence is left out where more than these forms might have to change: a numeral, a quantifier or a relative clause
   on the noun, a second finite verb of the same subject, a pronoun that may refer to the noun, a determiner or a bare
   noun that the treebank does not show in the other number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

from clsprobe.analysis.sources.treebank import Sentence, Treebank, render

OTHER = {"Past": "Pres", "Pres": "Past", "Sing": "Plur", "Plur": "Sing"}
ATTESTED = 0.05  # smallest share of a determiner's occurrences with nouns of a number for it to fit that number
_FINITE = {"VERB", "AUX"}
_DETERMINERS = {"Art", "Dem", "Prs"}  # types that do not restrict the number, unlike "every" or "many"


class Inflector:
    """The forms of a treebank, by lemma and features, and the twins of its sentences."""

    def __init__(self, bank: Treebank) -> None:
        self.bank = bank

    def change_tense(self, s: Sentence, verb: int) -> str | None:
        """The text with the root, a finite verb, in the other tense; None where that is not certain."""
        if self._finite_conjuncts(s, verb):
            return None
        return self._rewrite(s, {verb: self._other_form(s, verb, "Tense")})

    def change_subject_number(self, s: Sentence, noun: int) -> str | None:
        """The text with the root's subject in the other number; None where that is not certain."""
        root = s.root
        if s.upos[root] not in (*_FINITE, "ADJ") or self._finite_conjuncts(s, root):
            return None
        verbs = [i for i in (root, *s.children(root, "aux", "cop")) if s.features[i].get("VerbForm") == "Fin"]
        agreeing = [i for i in verbs if "Number" in s.features[i]]
        agreeing += [root] if s.upos[root] == "ADJ" and "Number" in s.features[root] else []
        if any(i not in agreeing and self._may_agree(s, i) for i in verbs):
            return None
        return self._change_number(s, noun, agreeing)

    def change_object_number(self, s: Sentence, noun: int) -> str | None:
        """The text with the root's object in the other number; None where that is not certain."""
        return self._change_number(s, noun, [])

    def _change_number(self, s: Sentence, noun: int, agreeing: list[int]) -> str | None:
        number = s.features[noun]["Number"]
        determiners = s.children(noun, "det")
        possessors = [i for i in s.children(noun) if s.relations[i] == "nmod:poss"]
        pronouns = (f for f, upos in zip(s.features, s.upos, strict=True) if upos == "PRON")
        if (
            s.children(noun, "nummod", "acl", "appos", "cc", "conj")
            or any(s.features[i].get("PronType") not in _DETERMINERS for i in determiners)
            or any(f.get("Person") == "3" and f.get("Number") == number for f in pronouns)
            or any(not self._fits(s.forms[i], OTHER[number]) for i in determiners if "Number" not in s.features[i])
            or (not determiners and not possessors and (s.lemmas[noun], OTHER[number]) not in self._bare_nouns)
        ):
            return None
        agreeing = [noun, *agreeing, *(i for i in s.children(noun, "det", "amod") if "Number" in s.features[i])]
        return self._rewrite(s, {i: self._other_form(s, i, "Number") for i in agreeing})

    def _other_form(self, s: Sentence, word: int, feature: str) -> str | None:
        """The only form of the lemma that has the other value of the feature, and otherwise the same features."""
        features = {**s.features[word], feature: OTHER.get(s.features[word][feature], "")}
        forms = self._forms[(s.lemmas[word], s.upos[word])].get(frozenset(features.items()), set())
        if len(forms) != 1 or s.lemmas[word] == "_":
            return None
        (form,) = forms
        if s.forms[word].isupper() and len(s.forms[word]) > 1:
            return form.upper()
        if any(map(str.isupper, s.forms[word][1:])):
            return None
        if not s.forms[word][:1].isupper():
            return form
        if self.bank.has_dotless_i and form[0] in "iı":
            return None  # two letters with one capital elsewhere
        return form[:1].upper() + form[1:]

    def _rewrite(self, s: Sentence, forms: Mapping[int, str | None]) -> str | None:
        """The text with new forms of some words; None without a change, or where a word is no token of its own."""
        tokens = s.tokens()
        index = {token.first: i for i, token in enumerate(tokens) if token.first == token.last}
        for word, form in forms.items():
            if form is None or word not in index:
                return None
            initial = form[:1].casefold()
            changed = word > 0 and initial != s.forms[word][:1].casefold()
            if changed and (s.forms[word - 1].casefold(), initial) not in self.bank.next_initials:
                return None  # such as "a owl"
            tokens[index[word]] = tokens[index[word]]._replace(form=form)
        text = render(tokens)
        return None if text == render(s.tokens()) else text

    def _finite_conjuncts(self, s: Sentence, root: int) -> list[int]:
        """Coordinated predicates without a subject of their own: "sleeps and dreams"."""
        return [i for i in s.children(root, "conj") if not s.children(i, "nsubj", "csubj", "expl")]

    def _may_agree(self, s: Sentence, verb: int) -> bool:
        """Whether a finite verb without the feature Number may agree: other forms of this kind have the feature."""
        return _verb_kind(s, verb) in self._numbered_verbs

    def _fits(self, form: str, number: str) -> bool:
        counts = self._determiner_counts
        form = form.casefold()
        return counts[form, number] >= ATTESTED * max(counts[form, number] + counts[form, OTHER[number]], 1)

    @cached_property
    def _forms(self) -> dict[tuple[str, str], dict[frozenset[tuple[str, str]], set[str]]]:
        """(lemma, part of speech) -> features -> forms, in lower case."""
        forms: dict[tuple[str, str], dict[frozenset[tuple[str, str]], set[str]]] = defaultdict(dict)
        for s, i in self._words():
            forms[s.lemmas[i], s.upos[i]].setdefault(frozenset(s.features[i].items()), set()).add(s.forms[i].lower())
        return forms

    @cached_property
    def _numbered_verbs(self) -> set[tuple[str | None, ...]]:
        """Kinds of finite verbs that have the feature Number somewhere."""
        return {
            _verb_kind(s, i)
            for s, i in self._words()
            if s.upos[i] in _FINITE and s.features[i].get("VerbForm") == "Fin" and "Number" in s.features[i]
        }

    @cached_property
    def _determiner_counts(self) -> Counter[tuple[str, str]]:
        """How often a determiner stands with a noun of a number."""
        return Counter(
            (s.forms[i].casefold(), s.features[s.heads[i] - 1].get("Number", ""))
            for s, i in self._words()
            if s.relation(i) == "det" and s.heads and s.heads[i] and s.upos[s.heads[i] - 1] == "NOUN"
        )

    @cached_property
    def _bare_nouns(self) -> set[tuple[str, str]]:
        """(lemma, number) of subjects and objects without a determiner."""
        return {
            (s.lemmas[i], s.features[i].get("Number", ""))
            for s, i in self._words()
            if s.heads and s.upos[i] == "NOUN" and s.relation(i) in ("nsubj", "obj")
            if not s.children(i, "det", "nummod") and all(s.relations[j] != "nmod:poss" for j in s.children(i))
        }

    def _words(self) -> Iterator[tuple[Sentence, int]]:
        return ((s, i) for s in self.bank.sentences for i in range(len(s.forms)))


def _verb_kind(s: Sentence, verb: int) -> tuple[str | None, ...]:
    """Verbs of one tense and mood; every auxiliary is a kind of its own."""
    lemma = s.lemmas[verb] if s.upos[verb] == "AUX" else ""
    return s.upos[verb], lemma, s.features[verb].get("Tense"), s.features[verb].get("Mood")
