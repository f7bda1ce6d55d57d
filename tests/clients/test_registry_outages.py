"""skopeo, podman and containerd's ctr, while a registry, its token server or its CDN are away, or refuse."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest

from clients.public_registry import LIST, MANIFEST, PublicRegistry, blobs_of
from clients.test_private import fetch
from clients.workshop import TOKENS, Dduct, Workshop, require, run

REPOSITORY = "library/app"
SKOPEO = ("skopeo", "--insecure-policy")


class Pulls:
    """Pulls of one image through one dduct; each leaves what it got in a directory of its own."""

    def __init__(self, registry: PublicRegistry, dduct: Dduct, directory: Path) -> None:
        self.registry = registry
        self.dduct = dduct
        self._directory = directory
        self._count = 0

    def skopeo(self, *options: str, image: str = f"{REPOSITORY}:1") -> Dict[str, bytes]:
        """The blobs that skopeo gets; an AssertionError with its output where it fails."""
        self._count += 1
        target = self._directory / f"pull-{self._count}"
        source = f"docker://{self.registry.host}/{image}"
        run(*SKOPEO, "copy", "-q", *options, source, f"dir:{target}", env=self.dduct.environment)
        return blobs_of(target)

    @contextlib.contextmanager
    def counted(self, part: str = "") -> Iterator[List[str]]:
        """What dduct asks the registry in this block, once it has ended: methods alone, in the alphabet's order."""
        before = len(self.registry.asked(part))
        asked: List[str] = []
        yield asked
        asked += sorted(one.partition(" ")[0] for one in self.registry.asked(part)[before:])

    def token(self, repository: str = REPOSITORY, *options: str) -> str:
        """A token as clients get one through dduct."""
        url = f"https://{TOKENS}:{self.registry.tokens.origin.port}/token?service=registry"
        status, body = fetch(self.dduct, f"{url}&scope=repository:{repository}:pull", *options)
        assert status == 200
        return str(json.loads(body)["token"])


Start = Callable[..., Pulls]


@pytest.fixture
def start(workshop: Workshop, tmp_path: Path) -> Start:
    """A registry with one public image, and a dduct."""
    require("skopeo", "docker-registry", "curl")

    def start(cache: str = "", proxy: str = "", cdn: bool = False) -> Pulls:
        registry = PublicRegistry(workshop, cdn)
        registry.push(REPOSITORY, "1")
        registry.tokens.public.add(REPOSITORY)
        return Pulls(registry, registry.dduct(workshop, cache, proxy), tmp_path)

    return start


def test_an_unchanged_image_costs_one_head_for_each_pull(start: Start) -> None:
    pulls = start()
    cold = pulls.skopeo()
    assert len(pulls.registry.asked("/blobs/")) == 4
    for options in ([], ["--src-creds", "alice:wonder"]):
        with pulls.counted() as asked:
            assert pulls.skopeo(*options) == cold
        assert asked == ["HEAD"]


def test_within_tag_check_a_pull_asks_nothing(start: Start) -> None:
    pulls = start("tag_check = '10m'")
    cold = pulls.skopeo()
    with pulls.counted() as asked:
        assert pulls.skopeo() == cold
    assert asked == []
    for arch in ("amd64", "arm64", "arm64"):
        pulls.skopeo("--override-arch", arch)
    assert len(pulls.registry.asked("/manifests/")) == 3  # the list, a manifest for each


def test_twenty_clients_with_a_token_each_ask_nothing_about_layers(start: Start) -> None:
    pulls = start("tag_check = '10m'", "workers = 2")
    blobs = pulls.skopeo()
    tokens = [pulls.token() for _ in range(20)]
    assert len(set(tokens)) == 20

    def get(token: str) -> List[int]:
        urls = [f"https://{pulls.registry.host}/v2/{REPOSITORY}/blobs/sha256:{name}" for name in blobs]
        return [fetch(pulls.dduct, url, "-H", f"Authorization: Bearer {token}")[0] for url in urls[:2]]

    with pulls.counted() as asked, ThreadPoolExecutor(4) as pool:
        assert all(statuses == [200, 200] for statuses in pool.map(get, tokens))
    assert asked == []


def go_down(registry: PublicRegistry) -> None:
    registry.origin.close()


def lose_tokens(registry: PublicRegistry) -> None:
    registry.tokens.origin.close()


def lose_all(registry: PublicRegistry) -> None:
    registry.origin.close()
    registry.tokens.origin.close()


TROUBLES: Dict[str, Callable[[PublicRegistry], None]] = {
    "down": go_down,
    "tokens-down": lose_tokens,
    "all-down": lose_all,
    "manifests-429": lambda registry: registry.refuse("/manifests/"),
    "all-429": lambda registry: registry.refuse("/v2/"),
    "all-500": lambda registry: registry.refuse("/v2/", 500),
    "hangs": lambda registry: registry.hang(),
}


@pytest.mark.parametrize(("trouble", "workers"), [("down", 1), *((trouble, 2) for trouble in TROUBLES)])
def test_a_public_image_is_pulled_all_the_same_and_a_private_one_is_refused(
    start: Start, trouble: str, workers: int
) -> None:
    pulls = start("", f"workers = {workers}", cdn=workers == 2)
    alice = ["--src-creds", "alice:wonder"]
    pulls.registry.push("team/app", "1")
    cold, private = pulls.skopeo(), pulls.skopeo(*alice, image="team/app:1")
    with pytest.raises(AssertionError, match=r"(?i)unauthorized|denied|authentication required"):
        pulls.skopeo(image="team/app:1")
    assert pulls.skopeo(*alice, image="team/app:1") == private
    TROUBLES[trouble](pulls.registry)
    for options in ([], [] if trouble == "hangs" else alice):  # hers is asked about each object
        assert pulls.skopeo(*options) == cold
    paths = ["manifests/1", *(f"blobs/sha256:{digest}" for digest in private)]
    for path in paths[:3]:
        for options in ([], ["-H", "Authorization: Bearer x"]):
            url = f"https://{pulls.registry.host}/v2/team/app/{path}"
            status, body = fetch(pulls.dduct, url, "-H", f"Accept: {LIST}, {MANIFEST}", *options)
            assert status >= 400 and b"sha256" not in body


def test_a_tag_that_moves_is_pulled_again(start: Start) -> None:
    pulls = start()
    old = pulls.skopeo()
    pulls.registry.push(REPOSITORY, "1")
    with pulls.counted("/manifests/") as asked:
        new = pulls.skopeo()
    assert not set(new) & set(old)
    assert asked == ["GET", "GET", "HEAD"]
    go_down(pulls.registry)
    assert pulls.skopeo() == new


def test_an_image_that_is_made_private_is_refused_to_others(start: Start) -> None:
    pulls = start()
    cold = pulls.skopeo()
    pulls.registry.tokens.public.clear()
    with pytest.raises(AssertionError, match=r"(?i)unauthorized|denied|authentication required"):
        pulls.skopeo()
    assert pulls.skopeo("--src-creds", "alice:wonder") == cold


def test_each_client_gets_a_manifest_that_it_knows_whatever_the_registry_does(start: Start) -> None:
    """Clients without lists get an image of one architecture, as docker-registry decides."""
    pulls = start()
    url = f"https://{pulls.registry.host}/v2/{REPOSITORY}/manifests/1"
    pulls.skopeo("--override-arch", "amd64"), pulls.skopeo("--override-arch", "arm64")
    token = f"Authorization: Bearer {pulls.token()}"

    def ask(accept: str, *options: str) -> object:
        status, body = fetch(pulls.dduct, url, "-H", f"Accept: {accept}", *options)
        assert status == 200
        return json.loads(body)["mediaType"]

    for options in (["-H", token], ["-H", token], []):
        if not options:
            lose_all(pulls.registry)
        assert ask(MANIFEST, *options) == MANIFEST
        assert ask(f"{LIST}, {MANIFEST}", *options) == LIST
        assert ask(f"{LIST}, {MANIFEST}, text/x", *options) == LIST
    amd, arm = (pulls.skopeo("--override-arch", one) for one in ("amd64", "arm64"))
    assert amd and arm and not set(amd) & set(arm)


# --- other clients ----------------------------------------------------------------------------------


def test_podman_pulls_while_the_registry_is_away(start: Start, request: pytest.FixtureRequest) -> None:
    require("podman")
    pulls = start()
    short = tempfile.mkdtemp(prefix="pod")  # podman takes no path of more than 50 characters
    request.addfinalizer(partial(shutil.rmtree, short))
    image = f"docker://{pulls.registry.host}/{REPOSITORY}:1"
    found = []
    for attempt in ("cold", "warm", "away"):
        if attempt == "away":
            lose_all(pulls.registry)
        engine = ["podman", "--root", f"{short}/{attempt}", "--runroot", f"{short}/run-{attempt}", "--storage-driver"]
        engine += ["vfs", "--tmpdir", f"{short}/tmp-{attempt}", "--events-backend", "file"]
        engine += ["--cgroup-manager", "cgroupfs"]
        with pulls.counted() as asked:
            found.append(run(*engine, "pull", "-q", image, env=pulls.dduct.environment))
        assert attempt == "cold" or asked in ([], ["HEAD"])
    assert found[0] == found[1] == found[2]


@pytest.fixture
def ctr(workshop: Workshop, request: pytest.FixtureRequest) -> List[object]:
    """ctr's command line for a containerd of its own, which has a content store and no more."""
    require("ctr", "containerd")
    short = Path(tempfile.mkdtemp(prefix="ctr"))
    request.addfinalizer(partial(shutil.rmtree, short))
    socket = short / "sock"
    (short / "config.toml").write_text(f"""
version = 2
root = "{short}/root"
state = "{short}/state"
required_plugins = ["io.containerd.content.v1.content"]
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
[grpc]
address = "{socket}"
""")
    program = workshop.start("containerd", ["containerd", "-c", short / "config.toml"])
    program.wait_until(socket.exists)
    return ["ctr", "-a", socket]


def test_containerd_pulls_while_the_registry_is_away(start: Start, ctr: List[object]) -> None:
    """It asks for the digest of a tag by HEAD, and then for that digest."""
    pulls = start("", "", cdn=True)
    image = f"{pulls.registry.host}/{REPOSITORY}:1"
    found = []
    for attempt in ("cold", "warm", "away"):
        if attempt == "away":
            lose_all(pulls.registry)
        with pulls.counted() as asked:
            run(*ctr, "content", "fetch", "--platform", "linux/amd64", image, env=pulls.dduct.environment)
        # Its first HEAD, without a token, gets a 401, as it must. On a connection that has brought an answer to HEAD,
        # dduct believes only what confirms the stored object, and asks again on another one.
        assert attempt == "cold" or (set(asked) <= {"HEAD"} and len(asked) <= 3)
        listed = run(*ctr, "content", "ls", "-q").split()
        found.append(sorted(listed))
        run(*ctr, "images", "rm", "--sync", image)
        for digest in run(*ctr, "content", "ls", "-q").split():
            run(*ctr, "content", "rm", digest)
    assert len(found[0]) == 6
    assert found[0] == found[1] == found[2]
