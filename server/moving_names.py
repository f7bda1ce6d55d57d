"""Names whose content changes: the defaults of `cache.volatile` and `cache.metadata`, grouped by package format.

Most are repository indexes: clients send no `Cache-Control`, origins state no lifetime, and an outdated index breaks
an installation or hides an update. A name matched by mistake costs one small validation per request.
"""

from __future__ import annotations

from typing import Dict, Tuple

VOLATILE: Tuple[str, ...] = (
    # apt, opkg
    r"/(?:In)?Release(?:\.gpg)?$",
    r"/(?:Packages|Sources|Index)(?:\.[a-z0-9]+)?$",
    r"/(?:Contents|Translation|Components|Commands|icons)-[^/]+$",
    r"/ls-lR(?:\.[a-z0-9]+)?$",
    # rpm-md (names that do not begin with a checksum), SUSE
    r"/repodata/(?![0-9a-f]{32,}-)[^/]+$",
    r"/media\.1/[^/]+$",
    r"/suse/setup/descr/[^/]+$",
    r"/(?:content|directory\.yast)(?:\.asc|\.key)?$",
    # apk, pacman, xbps
    r"/(?:APKINDEX\.(?:tar\.gz|adb)|packages\.adb)$",
    r"\.(?:db|files)(?:\.tar(?:\.[a-z0-9]+)?)?(?:\.sig)?$",
    r"[/-]repodata$",
    # Slackware, CRAN
    r"/(?:PACKAGES|CHECKSUMS|FILELIST|FILE_LIST|MANIFEST|ChangeLog)(?:\.[A-Za-z0-9]+)*$",
    r"/src/contrib/Meta/[^/]+$",
    # RubyGems, CPAN, LuaRocks
    r"/(?:(?:latest_|prerelease_)?specs|Marshal)\.[0-9.]+(?:\.[A-Za-z]+)?$",
    r"/(?:versions|names)$",
    r"/info/[^/]+$",
    r"/quick/",
    r"/(?:00whois|01mailrc|02packages|03modlist|06perms|find-ls|RECENT)[.-][^/]+$",
    r"/manifest(?:-[0-9.]+)?(?:\.(?:zip|json))?$",
    # conda, Hackage
    r"/(?:current_)?(?:repodata|channeldata|run_exports|patch_instructions)[a-z_]*\.(?:json|jlap|msgpack)(?:\.[a-z0-9]+)?$",
    r"/(?:0[01]-index\.tar(?:\.gz)?|(?:timestamp|snapshot|mirrors|root)\.json)$",
    # OSTree and Flatpak, Nix channels
    r"/summary(?:\.idx)?(?:\.sig)?$",
    r"/refs/(?:heads|mirrors|remotes)/",
    r"/config(?:\.json)?$",
    r"/nixexprs\.tar\.[a-z0-9]+$",
    # Helm, Maven, NuGet, F-Droid, simplestreams, Composer, Go
    r"/(?:index|index-v[0-9]|entry|packages)\.(?:json|ya?ml|xml|jar)(?:\.[a-z0-9]+)?$",
    r"/maven-metadata[^/]*\.xml(?:\.[a-z0-9]+)?$",
    r"-SNAPSHOT\.",
    r"/p2/[^/]+/[^/]+\.json$",
    r"/@v/list$|/@latest$",
    # Python's simple index and metadata, tags of container images
    r"/simple/(?:[^/]+/)?$|/pypi/[^/]+/json$",
    r"^/v2/.+/(?:manifests/(?!sha(?:256|512):)[^/]+|tags/list)$",
    # Names such as latest, and archives of branches
    r"/(?:latest|current|nightly)/",
    r"[/_.-]latest(?:[_.]|(?<!/latest)-)",
    r"/dist/[a-z-]*-(?:stable|beta|nightly)[.-]",
    r"/(?:archive|tarball|zipball|tar\.gz|zip)/(?:refs/heads/|(?:main|master|develop|trunk)(?:[./]|$))",
    r"/(?:resolve|raw)/(?:main|master)/",
    r"/(?:SHA[0-9]+|MD5)SUMS?(?:\.[a-z]+)*$",
)

# What no filter matches: it has no name of an archive, and clients cannot do without it. `0s`: validated each time.
METADATA: Dict[str, str] = {
    # images: what a digest names never changes; for tags, `cache.tag_check` says how long
    r"^/v2/.+/manifests/sha256:(?P<sha256>[0-9a-f]{64})$": "0s",
    r"^/v2/.+/manifests/sha512:(?P<sha512>[0-9a-f]{128})$": "0s",
    r"^/v2/.+/(?:manifests/[^/:]+|tags/list|referrers/sha256:[0-9a-f]{64})$": "0s",
    # Python: the simple index and its JSON; metadata of one wheel, which never changes
    r"/simple/(?:[^/]+/?)?$": "0s",
    r"^/pypi/[^/]+/(?:[^/]+/)?json$": "0s",
    r"^Accept: .*application/vnd\.pypi\.simple\.v1\+": "0s",
    r"\.(?:whl|tar\.gz)\.metadata$": "30d",
    # npm, yarn
    r"^//registry\.(?:npmjs\.org|npmjs\.com|yarnpkg\.com)/(?:@[^/]+(?:/|%2[Ff]))?[^/@-][^/]*$": "0s",
    r"^Accept: .*application/vnd\.npm\.install-v1\+json": "0s",
    r"^Pacote-Req-Type: packument$": "0s",
    # crates: sparse indexes
    r"^//index\.crates\.io/": "0s",
    r"^Cargo-Protocol: version=1$": "0s",
    r"/index/(?:config\.json|1/[^/]+|2/[^/]+|3/[^/]/[^/]+|[^/]{2}/[^/]{2}/[^/]+)$": "0s",
    # Go: a whole version never changes, nor does a record of the checksum database; branches and the like do
    r"/@v/list$|/@latest$": "0s",
    r"/@v/v[0-9]+\.[0-9]+\.[0-9]+[^/]*\.(?:info|mod)$": "30d",
    r"/@v/[^/]+\.info$": "0s",
    r"^//sum\.golang\.org/(?:lookup|tile)/|^/sumdb/[^/]+/(?:lookup|tile)/": "30d",
    r"^//sum\.golang\.org/latest$|^/sumdb/[^/]+/(?:supported|latest)$": "0s",
    # apt, rpm-md, apk
    r"/dists/": "0s",
    r"/(?:InRelease|Release|Release\.gpg|Packages|Sources)$": "0s",
    r"/repodata/[^/]+$": "0s",
    r"^/(?:metalink|mirrorlist)$": "0s",
    # Maven, Helm, Composer, RubyGems
    r"/maven-metadata[^/]*\.xml(?:\.[a-z0-9]+)?$": "0s",
    r"/index\.ya?ml$": "0s",
    r"/packages\.json$|/p2?/[^/]+/[^/]+\.json$": "0s",
    r"^/(?:versions|names|info/[^/]+)$": "0s",
}
