"""The chat over HTTP: a round trip, what is refused, and how long dialogues are kept."""

import http.client
import json
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from apps.crs.chat import ChatSession, create_server, serve
from apps.crs.chat.dialogues import Dialogues, UnknownDialogue
from apps.crs.chat.service import LARGEST_BODY, is_loopback
from apps.crs.policies import AbsGreedy, MaxEntropy, Threshold
from core.errors import InputError
from simulators.crs.catalogue import Catalogue
from simulators.crs.conversation import Conversation, Embeddings, Rules

HOSTILE = '<script>alert("x")</script>&amp;\u202e'


@pytest.fixture(scope="module")
def world():
    """Three items, of which the first has a name to be careful with."""
    catalogue = Catalogue(
        name="shop <b>",
        item_names=(HOSTILE, "椅子", "chair"),
        attribute_names=("red", "green", "oak", "<img src=x onerror=alert(1)>"),
        type_names=("colour", "material"),
        attribute_type=np.array([0, 0, 1, 1]),
        edges=np.array([(0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 3)]),
        n_users=2,
        interactions={"train": np.array([[0, 0], [1, 1]])},
    )
    generator = torch.Generator().manual_seed(0)
    points = Embeddings(*(torch.randn(n, 4, generator=generator) for n in (2, 3, 4)))
    return Conversation(catalogue, points, Rules(list_length=2))


@pytest.fixture
def server(world):
    """A server of two policies on a free port."""
    with create_server(world, {"asks": Threshold(world, 0), "lists": AbsGreedy(world)}, port=0, cap=6) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def call(server, path, data=None, **headers):
    """Status and JSON of a request."""
    body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url.rstrip("/") + path, body, sent)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def refusal(server, path, data=None, **headers):
    status, found = call(server, path, data, **headers)
    assert list(found) == ["error"]
    assert "\n" not in found["error"]
    return status, found["error"]


def test_a_dialogue_with_two_policies(server, world):
    status, about = call(server, "/api/catalogue")
    assert status == 200
    assert about["policies"] == ["asks", "lists"]
    assert (about["items"], about["users"], len(about["attributes"])) == (3, 2, 4)
    status, opened = call(server, "/api/start", {"user": 1, "text": "red"})
    assert status == 200
    assert opened["understood"]
    assert not opened["unsure"]
    asks, lists = opened["dialogues"]
    assert asks["id"] != lists["id"]
    assert [o["value"] for o in asks["accepted"]] == ["red"]
    assert asks["opening"] == "colour: red"
    assert (asks["turn"]["kind"], lists["turn"]["kind"]) == ("ask", "list")
    # Each goes on by itself, as a session beside the server does.
    twin = ChatSession(world, Threshold(world, 0), user=1, name="asks")
    twin.start([[0]])
    for said in ({"say": "no"}, {"say": "back"}, {"say": "list"}):
        status, after = call(server, "/api/answer", {"id": asks["id"], **said})
        assert status == 200
        {"no": lambda: twin.answer("no"), "back": twin.back, "list": twin.recommend}[said["say"]]()
        assert after["turn"] == json.loads(json.dumps(twin.turn().json()))
        assert call(server, f"/api/state?id={asks['id']}")[1]["turn"] == after["turn"]
    why = call(server, "/api/answer", {"id": asks["id"], "say": "why"})[1]["why"]
    assert why["of_list"] > 0
    item = after["turn"]["items"][0]
    ended = call(server, "/api/answer", {"id": asks["id"], "say": "item", "item": item["id"]})[1]
    assert ended["turn"]["kind"] == "accepted"
    assert call(server, f"/api/state?id={lists['id']}")[1]["turn"] == lists["turn"]


def test_words_are_confirmed_and_volunteered(server):
    opened = call(server, "/api/start", {"text": "grene, no oak"})[1]
    assert opened["unsure"] == [
        {"words": "grene", "negated": False, "options": [{"id": 1, "type": "colour", "value": "green"}]}
    ]
    first = opened["dialogues"][0]
    assert [o["value"] for o in first["rejected"]] == ["oak"]
    found = call(server, "/api/answer", {"id": first["id"], "say": "mention", "accepted": [[1]]})[1]
    assert [o["value"] for o in found["accepted"]] == ["green"]
    assert found["candidates"] == [3, 1]
    found = call(server, "/api/answer", {"id": first["id"], "say": "mention", "text": "xyzzy"})[1]
    assert not found["understood"]
    assert found["candidates"] == [3, 1]


@pytest.mark.parametrize(
    ("path", "data", "status", "error"),
    [
        ("/api/start", b"{", 400, "body: no JSON"),
        ("/api/start", b"\xff", 400, "body: no JSON"),
        ("/api/start", b"[" * 60_000, 400, "body: no JSON"),
        ("/api/start", b'{"user": NaN}', 400, "NaN is not JSON"),
        ("/api/start", [1], 400, "body: a list; must be a JSON object"),
        ("/api/start", {"user": 2}, 400, "user = 2: must be 0 to 1"),
        ("/api/start", {"user": True}, 400, "user = True: must be a whole number"),
        ("/api/start", {"user": "0"}, 400, "user = '0': must be a whole number"),
        ("/api/start", {"text": 3}, 400, "text = 3: must be a text"),
        ("/api/start", {"accepted": [[9]]}, 400, "attribute 9: must be 0 to 3"),
        ("/api/start", {"accepted": [1]}, 400, "accepted = 1: must be a list of ids"),
        ("/api/start", {"rejected": ["a"]}, 400, "rejected = ['a']: must be a list of ids"),
        ("/api/start", {"polices": []}, 400, "'polices': no such key; allowed: accepted, rejected, text, user"),
        ("/api/answer", {"say": "yes"}, 400, "id = None: must be the id of a dialogue"),
        ("/api/answer", {"id": "abc"}, 400, "say = None: must be a word"),
        ("/api/answer", {"id": "abc", "say": "yes"}, 404, "id: no such dialogue"),
        ("/api/start", b"{" + b" " * LARGEST_BODY + b"}", 413, "must be at most 65536"),
        ("/api/other", {}, 404, "/api/other: no such path"),
        ("/api/state?id=abc", None, 404, "id: no such dialogue"),
        ("/api/state", None, 400, "id: give the id of one dialogue"),
        ("/../service.py", None, 404, "no such path"),
        ("/api/start", None, 404, "no such path"),
    ],
)
def test_refusals_are_one_line(server, path, data, status, error):
    found, line = refusal(server, path, data)
    assert found == status
    assert error in line
    assert len(line) < 400


def test_answers_that_do_not_fit_the_turn_change_nothing(server):
    first = call(server, "/api/start", {})[1]["dialogues"][0]
    wrong = {"say": "maybe"}, {"say": "yes", "values": [0]}, {"say": "item", "item": 0}, {"say": "no", "item": "0"}
    for said in wrong:
        assert refusal(server, "/api/answer", {"id": first["id"], **said})[0] == 400
    after = call(server, f"/api/state?id={first['id']}")[1]
    assert {name: first[name] for name in after} == after


def test_only_pages_of_this_service_may_ask(server):
    assert refusal(server, "/api/catalogue", Host="evil.example")[0] == 403
    assert refusal(server, "/", Host="127.0.0.1.evil.example:80")[0] == 403
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert call(server, "/api/catalogue", Host=host)[0] == 200
    # What a form of another site can send without being asked about.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert refusal(server, "/api/start", b"{}", Content_Type=kind)[0] == 415


def test_methods_and_lengths(server):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    for method in ("PUT", "DELETE", "OPTIONS"):
        connection.request(method, "/")
        with connection.getresponse() as reply:
            assert reply.status == 405
            assert "must be GET or POST" in json.loads(reply.read())["error"]
    connection.putrequest("POST", "/api/start")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "-1")
    connection.endheaders()
    with connection.getresponse() as reply:
        assert reply.status == 400
        assert "Content-Length" in json.loads(reply.read())["error"]
    connection.close()


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    for _ in range(3):
        connection.request("POST", "/api/start", b"{}", {"Content-Type": "application/json"})
        with connection.getresponse() as reply:
            assert reply.status == 200
            reply.read()
    connection.close()


def test_the_page_and_what_it_may_load(server):
    with urllib.request.urlopen(server.url, timeout=10) as reply:
        page, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    # Nothing from elsewhere, and nothing that would take a name for markup.
    outside = [word for word in page.replace('"', " ").split() if word.startswith(("http://", "https://", "//"))]
    assert set(outside) <= {"http://www.w3.org/2000/svg", "//"}
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in page
    assert HOSTILE not in page


def test_hostile_names_travel_as_json_alone(server):
    with urllib.request.urlopen(server.url + "api/catalogue", timeout=10) as reply:
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert json.loads(reply.read())["attributes"][3]["value"] == "<img src=x onerror=alert(1)>"
    listed = call(server, "/api/start", {"accepted": [[2]]})[1]["dialogues"][1]
    assert [item["name"] for item in listed["turn"]["items"]] == [HOSTILE]


def test_many_people_at_once_have_their_own_dialogues(world):
    with create_server(world, {"asks": MaxEntropy(world)}, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        found = {}

        def person(number):
            opening = number % 4
            state = call(server, "/api/start", {"accepted": [[opening]]})[1]["dialogues"][0]
            while state["turn"]["kind"] in ("ask", "list"):
                state = call(server, "/api/answer", {"id": state["id"], "say": "no"})[1]
            found[number] = (opening, [o["id"] for o in state["accepted"]], state["turn"]["kind"])

        people = [threading.Thread(target=person, args=(n,)) for n in range(8)]
        for one in people:
            one.start()
        for one in people:
            one.join()
        server.shutdown()
        thread.join()
    assert sorted(found) == list(range(8))
    assert all(accepted == [opening] and kind == "relax" for opening, accepted, kind in found.values())


# ---- how long dialogues are kept


def test_dialogues_are_forgotten_when_nobody_goes_on_with_them(world):
    now = [0.0]
    kept = Dialogues(cap=10, ttl=60, clock=lambda: now[0])
    a, b = (kept.add(ChatSession(world, AbsGreedy(world))) for _ in range(2))
    now[0] = 50
    kept.get(a)
    now[0] = 61
    assert len(kept) == 1
    with pytest.raises(UnknownDialogue):
        kept.get(b)
    now[0] = 110
    kept.get(a)
    now[0] = 171
    assert len(kept) == 0


def test_the_dialogue_that_was_unused_for_longest_gives_way(world):
    kept = Dialogues(cap=2, ttl=60)
    a, b = (kept.add(ChatSession(world, AbsGreedy(world))) for _ in range(2))
    kept.get(a)
    c = kept.add(ChatSession(world, AbsGreedy(world)))
    assert len(kept) == 2
    kept.get(a)
    kept.get(c)
    with pytest.raises(UnknownDialogue):
        kept.get(b)
    assert len({a, b, c}) == 3
    assert min(map(len, (a, b, c))) >= 20


def test_the_cap_holds_over_http(server):
    ids = [d["id"] for _ in range(4) for d in call(server, "/api/start", {})[1]["dialogues"]]
    statuses = [call(server, f"/api/state?id={name}")[0] for name in ids]
    assert statuses == [404] * 2 + [200] * 6


# ---- addresses


def test_an_address_that_cannot_be_had_is_one_line(world, server):
    port = server.server_address[1]
    with pytest.raises(InputError, match=rf"^127.0.0.1 port {port}: address already in use$"):
        create_server(world, {"a": AbsGreedy(world)}, port=port)
    for wrong in (70_000, -1):
        with pytest.raises(InputError, match=f"127.0.0.1 port {wrong}: "):
            create_server(world, {"a": AbsGreedy(world)}, port=wrong)
    with pytest.raises(InputError, match=r"192.0.2.1 port 0: "):
        create_server(world, {"a": AbsGreedy(world)}, "192.0.2.1", 0)
    with pytest.raises(InputError, match="policies: none"):
        create_server(world, {}, port=0)
    with pytest.raises(InputError, match="cap = 0"):
        create_server(world, {"a": AbsGreedy(world)}, port=0, cap=0)
    with pytest.raises(InputError, match="ttl = 0"):
        create_server(world, {"a": AbsGreedy(world)}, port=0, ttl=0)


def test_what_is_a_loopback_address():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1", "localhost.evil.example", "")))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_serving_says_where_and_warns_who_may_come(world, host, monkeypatch):
    if host == "::1":
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("apps.crs.chat.service.ChatServer.serve_forever", interrupted)
    said = []
    serve(world, {"a": AbsGreedy(world), "b": AbsGreedy(world)}, host, 0, say=said.append)
    assert said[-1].startswith("serving shop <b> with a, b on http://")
    assert ("[::1]:" in said[-1]) == (host == "::1")
    assert (len(said) == 2 and "warning: 0.0.0.0 is no loopback address" in said[0]) == (host == "0.0.0.0")
