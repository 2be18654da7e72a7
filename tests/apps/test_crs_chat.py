"""Dialogues with people: what they say has the effect that the simulated user's words have, and can be undone."""

import json

import numpy as np
import pytest
import torch

from apps.crs.active_inference import ActiveInference
from apps.crs.chat import ChatSession, Matcher, chat
from apps.crs.chat.matching import normalised
from apps.crs.chat.terminal import script
from apps.crs.policies import AbsGreedy, MaxEntropy, OracleAsk, Policy, Threshold
from core.errors import InputError
from simulators.crs import selection
from simulators.crs.catalogue import Catalogue
from simulators.crs.conversation import Conversation, Embeddings, Rules
from simulators.crs.generated import PRESETS, generate

QUESTIONS = ("binary", "enumerated", "multi_choice")


def embedded(catalogue, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)
    return Embeddings(*(0.4 * torch.randn(count, dim, generator=generator) for count in counts))


@pytest.fixture(scope="module")
def tiny():
    return generate(PRESETS["tiny"], 0)


def conversation(catalogue, **rules):
    return Conversation(catalogue, embedded(catalogue), Rules(**rules))


def named(attributes, types, edges, items=None, kinds=("colour", "material")):
    """A catalogue by hand, of one user who likes item 0."""
    count = 1 + max(item for item, _ in edges)
    return Catalogue(
        name="shop",
        item_names=tuple(items or (f"item {i}" for i in range(count))),
        attribute_names=tuple(attributes),
        type_names=tuple(kinds[: 1 + max(types)]),
        attribute_type=np.array(types),
        edges=np.array(edges, dtype=np.int64),
        n_users=2,
        interactions={"train": np.array([[0, 0]])},
    )


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def agreed(session):
    """Wants the first thing that is asked about."""
    turn = session.turn()
    return session.answer("values", values=[turn.options[0].id]) if turn.several else session.answer("yes")


def truthful(session, target):
    """What somebody who wants this item says."""
    turn, world = session.turn(), session.world
    if turn.kind == "list":
        ids = [item.id for item in turn.items]
        return session.answer("item", item=target) if target in ids else session.answer("no")
    has = [o.id for o in turn.options if bool(world.relation.has(torch.tensor(target), torch.tensor(o.id)))]
    if turn.several:
        return session.answer("values", values=has)
    return session.answer("yes" if has else "no")


# ---- the session against the world


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("turns", ["paper", "official"])
def test_a_person_with_a_target_makes_the_dialogue_of_the_simulated_user(tiny, question, turns):
    world = conversation(tiny, question=question, turns=turns)
    generator = torch.Generator().manual_seed(0)
    noise = world.noise(1, generator)
    found = 0
    for user, target in tiny.pairs("test")[:25].tolist():
        opening = world.openings(torch.tensor([target]), generator)
        state = world.reset_to(torch.tensor([[user, target]]), opening)
        session = ChatSession(world, Threshold(world, 12), user=user)
        session.start([[int(opening)]])
        while not session.turn().over:
            moment = session.moment
            for name in ("candidate", "recommended", "asked", "accepted", "rejected", "order", "answers", "lists"):
                assert torch.equal(getattr(moment.state, name), getattr(state, name)), name
            torch.testing.assert_close(
                moment.state.score[state.candidate], state.score[state.candidate], rtol=1e-5, atol=1e-5
            )
            step = world.step(state, moment.action, noise)
            truthful(session, target)
            state = step.state
        assert (session.turn().kind == "accepted") == bool(step.info["is_success"])
        assert session.turn().number == int(state.turn) <= world.rules.actions
        found += session.turn().kind == "accepted"
    assert found > 15


def test_somebody_unknown_has_the_mean_embedding_and_a_user_the_own(tiny):
    world = conversation(tiny)
    for user, row in ((None, -1), (7, 7)):
        session = ChatSession(world, AbsGreedy(world), user=user)
        session.start()
        expected = (world.users[row] * world.embeddings.item).sum(1)
        torch.testing.assert_close(session.moment.state.score[0], expected)
        best = [item.id for item in session.turn().items]
        assert best == expected.topk(10).indices.tolist()
    with pytest.raises(InputError, match="user = 50: must be 0 to 49"):
        ChatSession(world, AbsGreedy(world), user=50)


def test_what_a_person_does_not_care_about_changes_nothing_but_is_not_asked_again(tiny):
    session = ChatSession(conversation(tiny), Threshold(conversation(tiny), 0))
    before, asked = session.moment.state, session.turn().options[0].id
    session.answer("unknown")
    after = session.moment.state
    assert torch.equal(before.candidate, after.candidate)
    assert torch.equal(before.score, after.score)
    assert bool(after.asked[0, asked])
    assert not bool(after.accepted.any() or after.rejected.any())
    assert session.turn().options[0].id != asked
    assert session.turn().number == 2


@pytest.mark.parametrize("question", QUESTIONS)
def test_back_restores_the_exact_state_and_the_turn(tiny, question):
    world = conversation(tiny, question=question)
    session = ChatSession(world, MaxEntropy(world, seed=3))
    assert not session.back()
    past = []
    for step in range(12):
        past.append(session.moment)
        turn = session.turn()
        if turn.over:
            past.pop()
            break
        if turn.kind == "ask" and step == 3:
            session.recommend()
        elif turn.kind == "ask" and step == 1:
            session.mention(rejected=[turn.options[0].id])
        elif turn.kind == "ask":
            agreed(session)
        else:
            session.answer("no")
    assert len(past) > 4
    for moment in reversed(past):
        assert session.back()
        assert same(session.moment.state, moment.state)
        assert session.turn() == moment.turn
        assert session.moment == moment or session.moment is moment
    assert not session.back()
    assert session.transcript()["undone"] == len(past)


def test_another_branch_after_back_is_the_one_that_would_have_been(tiny):
    world = conversation(tiny)
    straight, winding = (ChatSession(world, Threshold(world, 5)) for _ in range(2))
    winding.answer("yes")
    winding.answer("yes")
    winding.back()
    winding.back()
    for session in (straight, winding):
        session.answer("no")
        session.answer("unknown")
    assert same(straight.moment.state, winding.moment.state)
    assert straight.json() == winding.json()


def test_dialogues_of_one_policy_do_not_disturb_each_other(tiny):
    world = conversation(tiny)
    policy = MaxEntropy(world, seed=1)
    alone = ChatSession(world, policy)
    alone_kinds = [alone.turn().kind] + [truthful(alone, 3).kind for _ in range(3)]
    first, second = ChatSession(world, policy), ChatSession(world, policy)
    kinds = [first.turn().kind]
    for _ in range(3):
        second.turn()
        if not second.turn().over:
            truthful(second, 8)
        kinds.append(truthful(first, 3).kind)
    assert kinds == alone_kinds


# ---- volunteering, contradictions, the end


def test_volunteered_attributes_narrow_as_answers_do_and_take_no_turn(tiny):
    world = conversation(tiny)
    session = ChatSession(world, Threshold(world, 0))
    session.start()
    a, b = tiny.edges[tiny.edges[:, 0] == 0][:2, 1].tolist()
    session.mention([[a]])
    session.mention([[b]], rejected=[29])
    expected = ChatSession(world, Threshold(world, 0))
    expected.start([[a], [b]], [29])
    having = {v for v in range(tiny.n_items) if {(v, a), (v, b)} <= set(map(tuple, tiny.edges.tolist()))}
    assert set(session.moment.state.candidate[0].nonzero().squeeze(1).tolist()) == having
    assert same(session.moment.state, expected.moment.state)
    assert session.turn().number == 1
    # Either of two is enough if they are said to be.
    either = ChatSession(world, Threshold(world, 0))
    either.start([[a, b]])
    held = tiny.edges[np.isin(tiny.edges[:, 1], [a, b]), 0]
    assert set(either.moment.state.candidate[0].nonzero().squeeze(1).tolist()) == set(held.tolist())
    # What is said later counts.
    session.mention(rejected=[a])
    only = ChatSession(world, Threshold(world, 0))
    only.start([[b]], [a, 29])
    assert torch.equal(session.moment.state.candidate, only.moment.state.candidate)
    assert torch.equal(session.moment.state.rejected, only.moment.state.rejected)


def test_volunteering_more_than_questions_could_find_out_is_no_harm(tiny):
    world = conversation(tiny, max_turns=3)
    session = ChatSession(world, Threshold(world, 0))
    held = tiny.edges[tiny.edges[:, 0] == np.bincount(tiny.edges[:, 0]).argmax(), 1].tolist()
    session.start([[p] for p in held])
    assert len(held) > world.order_length
    for _ in range(4):
        if not session.turn().over:
            session.answer({"ask": "yes"}.get(session.turn().kind, "no"))
    assert session.turn().over


def test_contradictory_answers_are_noticed_and_the_last_constraint_can_be_dropped():
    #      0 red, 1 blue, 2 oak, 3 pine; nothing is red and of pine
    shop = named(["red", "blue", "oak", "pine"], [0, 0, 1, 1], [(0, 0), (0, 2), (1, 1), (1, 3), (2, 1), (2, 2)])
    world = conversation(shop, list_length=2)
    session = ChatSession(world, Threshold(world, 0))
    session.start([[0]])
    before = session.moment.state.candidate
    turn = session.mention([[3]])
    assert turn.kind == "relax"
    assert [o.text for o in turn.options] == ["material: pine"]
    assert turn.candidates == 0
    with pytest.raises(InputError, match="must be one of yes, no"):
        session.answer("unknown")
    session.answer("yes")
    assert torch.equal(session.moment.state.candidate, before)
    assert not bool(session.moment.state.accepted[0, 3])
    assert bool(session.moment.state.asked[0, 3])
    # Without it the dialogue goes on as if it had not been said.
    assert session.turn().kind in ("ask", "list")
    session.back()
    assert session.answer("no").kind == "not_found"


def test_constraints_are_dropped_one_after_another_until_something_is_left():
    shop = named(["red", "blue", "oak", "pine"], [0, 0, 1, 1], [(0, 0), (0, 2), (1, 1), (1, 3)])
    world = conversation(shop, list_length=1)
    session = ChatSession(world, AbsGreedy(world))
    session.start([[0]])
    assert [item.id for item in session.turn().items] == [0]
    # The only red item is not wanted: nothing is left until red is given up.
    assert session.answer("no").kind == "relax"
    assert session.answer("yes").kind == "list"
    assert [item.id for item in session.turn().items] == [1]
    turn = session.answer("no")
    assert turn.kind == "not_found"
    assert turn.text == "Not found: nothing is left."
    with pytest.raises(InputError, match="the dialogue is over"):
        session.answer("no")
    with pytest.raises(InputError, match="the dialogue is over"):
        session.mention([[0]])


def test_the_last_turn_is_a_list_and_the_limit_ends_the_dialogue(tiny):
    for turns, actions in (("paper", 4), ("official", 3)):
        world = conversation(tiny, max_turns=4, turns=turns)
        session = ChatSession(world, Threshold(world, 0))
        kinds = []
        while not session.turn().over:
            kinds.append(session.turn().kind)
            session.answer("no")
        assert kinds == ["ask"] * (actions - 1) + ["list"]
        assert session.turn().kind == "not_found"
        assert session.turn().text == f"Not found in {actions} turns."


class Stubborn(Policy):
    """Asks the same again and again, and has no list."""

    def __call__(self, observation, state=None):
        return selection.ask(self.world, torch.zeros(1, 1, dtype=torch.int64))

    def recommend(self, observation):
        return selection.recommend(self.world, torch.full((1, 3), -1))


def test_a_policy_that_asks_again_or_lists_nothing_recommends_the_best_candidates(tiny):
    world = conversation(tiny)
    session = ChatSession(world, Stubborn(world))
    assert session.turn().kind == "ask"
    turn = session.answer("no")
    assert turn.kind == "list"
    assert [i.id for i in turn.items] == session.moment.state.score[0].topk(10).indices.tolist()
    # One that looks at the target finds none to look at.
    assert ChatSession(world, OracleAsk(world)).turn().kind == "list"


def test_a_catalogue_of_one_item_and_one_attribute():
    world = conversation(named(["red"], [0], [(0, 0)]), list_length=1)
    for answer in ("yes", "no", "unknown"):
        session = ChatSession(world, Threshold(world, 0))
        assert session.turn().kind == "ask"
        assert session.answer(answer).kind == "list"
        assert session.why().of_list == pytest.approx(1)
        assert session.answer("no").kind == ("relax" if answer == "yes" else "not_found")
    session.back()
    assert session.answer("item", item=0).kind == "accepted"


# ---- what is told


def test_items_say_what_matched_and_what_was_rejected():
    shop = named(["red", "blue", "oak", "pine"], [0, 0, 1, 1], [(0, 0), (0, 1), (0, 3), (1, 0)])
    world = conversation(shop, list_length=2)
    session = ChatSession(world, AbsGreedy(world))
    session.start([[0]], [1])
    item = next(i for i in session.turn().items if i.id == 0)
    assert [o.value for o in item.matched] == ["red"]
    assert [o.value for o in item.against] == ["blue"]
    assert [o.value for o in item.others] == ["pine"]


def test_items_that_are_no_candidates_say_what_they_lack():
    shop = named(["red", "blue", "oak", "pine"], [0, 0, 1, 1], [(0, 0), (0, 3), (1, 1), (1, 3)])
    world = conversation(shop, list_length=2)
    session = ChatSession(world, ActiveInference(world))
    session.start([[0], [3]])
    lacking = {i.name: [o.value for o in i.lacking] for i in session.turn().items}
    assert lacking == {"item 0": [], "item 1": ["red"]}
    _, said = held(ChatSession(world, ActiveInference(world)), ["red and pine", "quit"])
    assert "  2 item 1 (material: pine), but not colour: red" in said


@pytest.mark.parametrize("question", QUESTIONS)
def test_why_says_what_answers_do(tiny, question):
    world = conversation(tiny, question=question)
    session = ChatSession(world, Threshold(world, 5))
    session.start([[int(tiny.edges[0, 1])]])
    turn, why = session.turn(), session.why()
    share = selection.shares(world, world.observe(session.moment.state, None))[0]
    entropy = -sum(float(p * p.log2() + (1 - p) * (1 - p).log2()) for o in turn.options if 0 < (p := share[o.id]) < 1)
    assert why.entropy == pytest.approx(entropy, abs=1e-4)
    assert why.believed_by == "scores"
    assert len(why.belief) == 5
    candidates = session.moment.state.candidate.sum()
    for place, outcome in enumerate(why.outcomes):
        assert outcome.left + outcome.ruled_out == candidates
        if outcome.answer == "don't care":
            said = ("unknown", ())
        elif outcome.answer in ("no", "none"):
            said = ("no", ())
        else:
            said = ("values", [turn.options[place].id]) if turn.several else ("yes", ())
        session.answer(said[0], values=said[1])
        assert session.moment.state.candidate.sum() == outcome.left
        session.back()
    session.recommend()
    why = session.why()
    assert why.entropy is None
    assert 0 < why.of_list <= 1
    assert why.outcomes[0].ruled_out == len(session.turn().items)
    assert all("\n" not in line for line in why.lines())


class Believer(AbsGreedy):
    def posterior(self, observation):
        q = torch.zeros(1, self.world.catalogue.n_items)
        q[0, 4], q[0, 9] = 0.75, 0.25
        return q


def test_why_tells_the_belief_of_a_policy_that_has_one(tiny):
    why = ChatSession(conversation(tiny), Believer(conversation(tiny))).why()
    assert why.believed_by == "posterior"
    assert why.belief == ((tiny.item_names[4], 0.75), (tiny.item_names[9], 0.25))


def test_refused_answers_name_what_is_allowed(tiny):
    world = conversation(tiny)
    session = ChatSession(world, Threshold(world, 5))
    with pytest.raises(InputError, match=r"say = 'maybe': must be one of yes, no, unknown"):
        session.answer("maybe")
    with pytest.raises(InputError, match=r"values = \[3\]"):
        session.answer("yes", values=[3])
    with pytest.raises(InputError, match="item = 3"):
        session.answer("no", item=3)
    with pytest.raises(InputError, match="attribute 30: must be 0 to 29"):
        session.mention([[30]])
    with pytest.raises(InputError, match="attribute 1: is both"):
        session.mention([[1]], [1])
    with pytest.raises(InputError, match="at once; must be at most"):
        session.mention([list(range(30))] * 3)
    with pytest.raises(InputError, match="open already"):
        session.start()
    turn = session.recommend()
    listed = [i.id for i in turn.items]
    with pytest.raises(InputError, match="must be one of"):
        session.answer("item", item=next(v for v in range(100) if v not in listed))
    with pytest.raises(InputError, match="a list takes the place of a question"):
        session.recommend()


def test_transcripts_are_json(tiny):
    world = conversation(tiny, question="enumerated")
    session = ChatSession(world, Threshold(world, 5), user=4)
    session.start([[1, 2], [7]], [3])
    while not session.turn().over:
        truthful(session, 0)
    record = json.loads(json.dumps(session.transcript()))
    assert record["catalogue"] == {"name": tiny.name, "hash": tiny.hash}
    assert record["opening"] == {"accepted": [[1, 2], [7]], "rejected": [3]}
    assert record["outcome"] in ("accepted", "not_found")
    assert len(record["exchanges"]) >= record["turns"]
    assert json.loads(json.dumps(session.json()))["turn"]["kind"] == record["outcome"]


# ---- free text


@pytest.fixture(scope="module")
def shop():
    colours, materials = ["Red", "bleu pâle", "olive green", "none", "赤"], ["oak", "wool", "none"]
    others = ["under 10", "C++", "C", "straße", "ёлка"]
    types = [0] * len(colours) + [1] * len(materials) + [2] * len(others)
    edges = [(0, p) for p in range(len(types))]
    return named([*colours, *materials, *others], types, edges, kinds=("colour", "material", "other"))


@pytest.mark.parametrize(
    ("text", "accepted", "rejected"),
    [
        ("red", [[0]], []),
        ("a RED thing, Bleu-Pale!", [[0], [1]], []),
        ("olive  green please", [[2]], []),
        ("not red", [], [0]),
        ("no wool", [], [6]),
        ("I don't want wool or oak, but red", [[0]], [6, 5]),
        ("without wool; red", [[0]], [6]),
        ("not red I want oak", [[5]], [0]),
        ("red or oak, under 10", [[0, 5], [8]], []),
        ("colour: none", [[3]], []),
        ("none material", [[7]], []),
        ("C++ and c", [[9], [10]], []),
        ("赤", [[4]], []),
        ("STRASSE", [[11]], []),
        ("ёлка", [[12]], []),
        ("red, not red", [], [0]),
        ("", [], []),
        ("?!", [], []),
        ("tell me about the weather", [], []),
    ],
)
def test_text_says_what_is_wanted(shop, text, accepted, rejected):
    found = Matcher(shop)(text)
    assert [list(group) for group in found.accepted] == accepted
    assert list(found.rejected) == rejected
    assert not found.unsure
    assert bool(found) == bool(accepted or rejected)


@pytest.mark.parametrize(
    ("text", "words", "attributes", "negated"),
    [
        ("olve green", "olve green", (2,), False),
        ("not woool", "woool", (6,), True),
        ("none", "none", (3, 7), False),
        ("olive", "olive", (2,), False),
        ("赤がいい", "赤がいい", (4,), False),
    ],
)
def test_what_is_unsure_is_asked(shop, text, words, attributes, negated):
    found = Matcher(shop)(text)
    assert not found.accepted
    assert not found.rejected
    (guess,) = found.unsure
    assert (guess.words, guess.attributes, guess.negated) == (words, attributes, negated)


def test_every_name_of_a_catalogue_finds_itself(tiny):
    matcher = Matcher(tiny)
    for p, name in enumerate(tiny.attribute_names):
        kind = tiny.type_names[tiny.attribute_type[p]]
        for text in (name, name.upper(), f"{kind}: {name}", f"something {name} please"):
            assert matcher(text).accepted == ((p,),), text
        assert matcher(f"not {name}").rejected == (p,)


def test_normalising_twice_changes_nothing_and_keeps_letters_apart():
    for text in ("Straße", "É", "ёлка", "が", "ﬁne", "İstanbul", "Ὀδυσσεύς"):
        assert normalised(normalised(text)) == normalised(text)
    assert normalised("é") == "e"
    assert normalised("й") != normalised("и")
    assert normalised("が") != normalised("か")


# ---- the terminal


def held(session, lines, **more):
    said = []
    code = chat(session, lines=lines, say=said.append, **more)
    return code, said


def test_a_script_that_finds_its_item(tiny, tmp_path):
    world = conversation(tiny)
    path = tmp_path / "chat.json"
    name = tiny.attribute_names[0]
    code, said = held(
        ChatSession(world, Threshold(world, 20)),
        ["# a comment", name, "y", "?", "back", "why", "n", "list", "2"],
        json_path=path,
    )
    assert code == 0
    question = next(line for line in said if line.startswith("Do you want"))
    assert question.endswith("[y/n/?/why/back/list/quit]")
    assert any("bits" in line for line in said)
    assert said[-1].startswith("Found: ")
    record = json.loads(path.read_text())
    assert record["exit_code"] == 0
    assert record["outcome"] == "accepted"
    assert record["undone"] == 1
    assert record["opening"]["accepted"] == [[0]]
    assert [e["said"]["say"] for e in record["exchanges"]] == ["yes", "no", "list", "item"]
    assert record["item"] == record["exchanges"][-1]["turn"]["items"][1]["id"]
    assert f"Found: {tiny.item_names[record['item']]}." == said[-1]


@pytest.mark.parametrize("question", ["enumerated", "multi_choice"])
def test_several_values_are_chosen_by_number(tiny, question):
    world = conversation(tiny, question=question)
    session = ChatSession(world, Threshold(world, 0))
    code, said = held(session, ["", "1", "0", "1, 2", "quit"])
    assert code == 3
    record = session.transcript()
    asked = [[o["id"] for o in e["turn"]["options"]] for e in record["exchanges"]]
    said_values = [(e["said"]["say"], e["said"].get("values", [])) for e in record["exchanges"][:2]]
    assert said_values == [("values", asked[0][:1]), ("no", [])]
    assert any("0 for none" in line for line in said)


@pytest.mark.parametrize(
    ("lines", "code", "last"),
    [
        (["quit"], 3, "Goodbye."),
        ([], 3, "Goodbye."),
        (["", "y"], 3, "Goodbye."),
        (["", "n", "quit"], 3, "Goodbye."),
        (["nonsense words"], 2, "line 1: 'nonsense words': names no attribute of tiny"),
        (["", "# note", "perhaps"], 2, "line 3: 'perhaps': names no attribute of tiny"),
        (["", "list", "11"], 2, "line 3: 11: must be one of 1 to 10"),
        (["", "list", "y"], 2, "line 3: 'y': which? must be a number from 1 to 10, or n for none"),
        (["", "list", "1,2"], 2, "line 3: 1, 2: must be one of 1 to 10"),
        (["", "list", "list"], 2, "line 3: list: the dialogue is at 'list'; a list takes the place of a question"),
        (["", "list", "9" * 6000], 2, None),
        (["", *["n"] * 15], 3, "Not found in 15 turns."),
        (["", "list", "1"], 0, None),
    ],
)
def test_exit_codes(tiny, lines, code, last):
    world = conversation(tiny)
    found, said = held(ChatSession(world, Threshold(world, 0)), lines)
    assert found == code
    if last is not None:
        assert said[-1] == last


def test_a_misspelt_word_is_confirmed(tiny):
    world = conversation(tiny)
    name = max(tiny.attribute_names, key=len)
    wrong, p = name[:3] + name[4:], tiny.attribute_names.index(name)
    question = f"do you mean {tiny.type_names[tiny.attribute_type[p]]}: {name}? [y/n]"
    for reply, accepted in (("y", [[p]]), ("n", [])):
        session = ChatSession(world, Threshold(world, 0))
        code, said = held(session, [wrong, reply, "quit"])
        assert code == 3
        assert any(question in line for line in said)
        assert session.transcript()["opening"]["accepted"] == accepted
    assert held(ChatSession(world, Threshold(world, 0)), [wrong, "perhaps"])[0] == 2


def test_a_contradiction_in_a_script():
    shop = named(["red", "blue", "oak", "pine"], [0, 0, 1, 1], [(0, 0), (0, 2), (1, 1), (1, 3), (2, 1), (2, 2)])
    world = conversation(shop, list_length=2)
    code, said = held(ChatSession(world, AbsGreedy(world)), ["red", "pine", "y", "1"])
    assert code == 0
    assert "Shall I drop material: pine? [y/n/back/quit]" in " ".join(said)
    assert held(ChatSession(world, AbsGreedy(world)), ["red", "pine", "n"])[0] == 3


def test_somebody_at_a_keyboard_is_asked_again_and_may_leave_by_ctrl_c(tiny, monkeypatch):
    world = conversation(tiny)
    for ending in (KeyboardInterrupt, EOFError):
        typed = iter(["", "nonsense", "why", "y"])

        def line(prompt, typed=typed, ending=ending):
            for text in typed:
                return text
            raise ending

        monkeypatch.setattr("builtins.input", line)
        said = []
        assert chat(ChatSession(world, Threshold(world, 0)), say=said.append) == 3
        assert "'nonsense': names no attribute of tiny" in said
        assert said[-1] == "Goodbye."


def test_names_of_any_script_are_shown_and_none_steers_the_terminal():
    shop = named(
        ["赤", "naïve"], [0, 0], [(0, 0), (1, 1)], items=["Стул 椅子 🪑", "evil\x1b[2J\u202ename"], kinds=("цвет",)
    )
    world = conversation(shop, list_length=2)
    code, said = held(ChatSession(world, AbsGreedy(world)), ["", "1"])
    assert code == 0
    text = "\n".join(said)
    assert "Стул 椅子 🪑" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_scripts_and_transcripts_that_cannot_be_had(tiny, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        script(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"gr\xfcn\n")
    with pytest.raises(InputError, match="not UTF-8"):
        script(tmp_path / "latin.txt")
    (tmp_path / "answers.txt").write_text("\nlist\n1\n", encoding="utf-8")
    world = conversation(tiny)
    session = ChatSession(world, Threshold(world, 0))
    with pytest.raises(InputError, match="no such file or directory"):
        held(session, script(tmp_path / "answers.txt"), json_path=tmp_path / "absent" / "chat.json")
