"""Who may look, and what the browser is told about every answer."""

from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from alloop.serve.guard import ACTIONS, COOKIE, LONGEST_BODY, LONGEST_FORM, Guard

HOST = "127.0.0.1:8571"
HERE = f"http://{HOST}"
TOKEN = "a token that is long enough"


def make_client(token: str | None = None, *, is_read_only: bool = False) -> TestClient:
    guard = Guard(PlainTextResponse("a page"), {HOST}, token, is_read_only=is_read_only)  # type: ignore[arg-type]
    return TestClient(guard, base_url=HERE, follow_redirects=False)


async def csrf_page(scope: Any, receive: Any, send: Any) -> None:
    """A page with the hidden field of its forms, which is also the answer to a form."""
    await PlainTextResponse(scope["alloop.csrf"])(scope, receive, send)


def acting(*, is_read_only: bool = False) -> tuple[TestClient, str]:
    """Return a browser that has opened a page, and the hidden field of the page."""
    client = TestClient(Guard(csrf_page, {HOST}, None, is_read_only=is_read_only), base_url=HERE)
    return client, client.get("/").text


def act(client: TestClient, csrf: str, origin: str | None = HERE, **options: Any) -> int:
    headers = {} if origin is None else {"origin": origin}
    return client.post("/junk", data={"csrf": csrf, "id": "1"}, headers=headers, **options).status_code


def log_in(client: TestClient, token: str = TOKEN, origin: str = HERE) -> int:
    return client.post("/login", data={"token": token}, headers={"origin": origin}).status_code


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:8572", "127.0.0.1:8571.evil.example", "", "localhost:8571"]
)
@pytest.mark.parametrize("path", ["/", "/static?file=alloop.css", "/login", "/thumbnail?id=1&side=160"])
def test_another_name_of_this_machine_is_refused_on_every_kind_of_page(host: str, path: str):
    assert make_client().get(path, headers={"host": host}).status_code == 421


def test_a_known_name_is_answered_whatever_its_case():
    client = TestClient(Guard(PlainTextResponse("a page"), {"Name:80"}, None))  # type: ignore[arg-type]

    assert client.get("/", headers={"host": "nAME:80"}).text == "a page"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(method: str):
    assert make_client().request(method, "/").status_code == 405


def test_a_form_of_a_page_of_this_server_is_passed_on():
    client, csrf = acting()

    assert act(client, csrf) == 200
    client.cookies.clear()
    cookie = client.get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert "set-cookie" not in acting()[0].get("/thumbnail").headers


@pytest.mark.parametrize(
    "origin", [None, "null", "", "http://evil.example", "https://127.0.0.1:8571", "http://127.0.0.1:8572", HERE + "/"]
)
def test_a_form_of_another_page_changes_nothing(origin: str | None):
    client, csrf = acting()

    assert act(client, csrf, origin) == 403


def test_a_form_needs_the_field_of_its_own_session():
    client, csrf = acting()
    _, others = acting()

    assert [act(client, wrong) for wrong in ("", "x", csrf[:-1], others)] == [403] * 4
    assert client.post("/junk", data={"id": "1"}, headers={"origin": HERE}).status_code == 403
    client.cookies.clear()
    assert act(client, csrf) == 403


def test_a_server_that_only_shows_refuses_every_action():
    client, csrf = acting(is_read_only=True)

    for path in sorted(ACTIONS):
        assert client.post(path, data={"csrf": csrf}, headers={"origin": HERE}).status_code == 403
    assert client.get("/").status_code == 200


def test_a_body_that_is_too_long_or_no_form_is_refused():
    client, csrf = acting()
    options = {"headers": {"origin": HERE}}

    def post(content: bytes, kind: str = "application/x-www-form-urlencoded") -> int:
        headers = {"origin": HERE, "content-type": kind}
        return client.post("/junk", content=content, headers=headers).status_code

    form = f"csrf={csrf}&id=1".encode()
    assert post(form + b"," + b"2" * LONGEST_FORM) == 413
    assert post(form + b"&id=1" * 11_000) == 400
    assert post(b"\xff\xfe") == 400
    for kind in ("text/plain", "application/json", "multipart/form-data; boundary=x", ""):
        assert post(form, kind) == 415
    assert client.put("/junk", **options).status_code == client.post("/images", **options).status_code == 405


def test_an_action_needs_the_login():
    client = make_client(TOKEN)

    assert client.post("/junk", data={"csrf": ""}, headers={"origin": HERE}).headers["location"] == "login"


def test_every_answer_tells_the_browser_to_run_nothing_of_others():
    for client in (make_client(), make_client(TOKEN)):
        for answer in (client.get("/"), client.get("/", headers={"host": "evil.example"}), client.post("/")):
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in answer.headers


def test_without_login_there_is_only_the_form():
    client = make_client(TOKEN)

    assert [client.get(path).status_code for path in ("/", "/images", "/thumbnail?id=1")] == [303] * 3
    assert client.get("/").headers["location"] == "login"
    assert client.get("/login").text == "a page"


def test_the_token_opens_the_pages_and_is_in_no_cookie_and_no_address():
    client = make_client(TOKEN)

    answer = client.post("/login", data={"token": f" {TOKEN}\n"}, headers={"origin": HERE})

    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/").text == "a page"


@pytest.mark.parametrize("token", ["", "a token that is long enougH", TOKEN + "x", "é" * 40])
def test_another_token_opens_nothing(token: str):
    client = make_client(TOKEN)

    assert log_in(client, token) == 303
    assert client.get("/").status_code == 303


def test_a_made_up_session_is_none():
    client = make_client(TOKEN)
    client.cookies.set(COOKIE, "made-up")

    assert client.get("/").status_code == 303


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:8572", "null", ""])
def test_a_login_form_of_another_page_is_refused(origin: str):
    assert log_in(make_client(TOKEN), origin=origin) == 403


def test_a_long_form_and_a_long_address_are_not_read():
    client = make_client(TOKEN)

    assert log_in(client, "x" * (LONGEST_BODY + 1)) == 303
    assert client.get("/").status_code == 303
    assert client.get("/?text=" + "x" * 9000).status_code == 414


def test_the_address_of_a_redirect_never_comes_from_the_request():
    client = make_client(TOKEN)

    for path in ("//evil.example", "/%5Cevil.example", "/?next=//evil.example"):
        assert client.get(path).headers["location"] == "login"
