"""Names whose content changes: the default of `cache.volatile`, grouped by package format.

Most are repository indexes: clients send no `Cache-Control`, origins state no lifetime, and an outdated index breaks
an installation or hides an update. A name matched by mistake costs one small validation per request.
"""

from __future__ import annotations

from typing import Tuple

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
