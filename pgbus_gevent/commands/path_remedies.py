"""What stands in front of a server, as its answers show it, and what to change there."""

from __future__ import annotations

from collections.abc import Mapping

FRONTS = ("nginx", "HAProxy", "Caddy", "Apache", "Cloudflare", "AWS ALB")

_SIGNS = {
    "Cloudflare": (("cf-ray", ""), ("server", "cloudflare")),
    "nginx": (("server", "nginx"), ("server", "openresty")),
    "Caddy": (("server", "caddy"), ("via", "caddy")),
    "Apache": (("server", "apache"),),
    "AWS ALB": (("server", "awselb"), ("set-cookie", "awsalb")),
}
"""Headers that a front adds to answers, and what their values contain, in lower case."""

_OWN_ANSWERS = {
    "HAProxy": "your browser sent an invalid request.",
    "nginx": "<center>nginx",
    "Cloudflare": "<center>cloudflare",
    "AWS ALB": "server: awselb",
    "Caddy": "server: caddy",
    "Apache": "server: apache",
}
"""What the answer of a front to a malformed request contains, in lower case. HAProxy shows itself in no other."""


def fronts_in(headers: Mapping[str, str], own_answer: str) -> dict[str, str]:
    """Return what stands in front, from outside to inside as far as that is known, each with what shows it.

    ``headers`` are those of an answer, with names in lower case; ``own_answer`` is the answer to a malformed request.
    """
    found: dict[str, str] = {}
    for front, signs in _SIGNS.items():
        for name, part in signs:
            value = headers.get(name, "")
            if name in headers and part in value.lower():
                shown = "" if name == "set-cookie" else f" {value}"  # a cookie may be a secret
                found.setdefault(front, f"header {name}:{shown}".removesuffix(":"))
    text = own_answer.lower()
    for front, part in _OWN_ANSWERS.items():
        if part in text:
            found.setdefault(front, "its answer to a malformed request")
    return found


REMEDIES: dict[str, dict[str, str]] = {
    "path": {
        "nginx": "write `proxy_pass http://NAME;` without a path, even without a slash: any path there replaces the location's",
        "HAProxy": "remove `http-request set-path` and `replace-path` for these requests",
        "Caddy": "use `handle` instead of `handle_path`, and remove `uri strip_prefix`",
        "Apache": "write the path on both sides: `ProxyPass /pgbus http://127.0.0.1:8080/pgbus`",
        "Cloudflare": "remove the URL Rewrite Rule, Origin Rule or Worker for this path",
        "AWS ALB": "let the listener rule for /pgbus and /pgbus/* forward to the server's target group, without a transform",
    },
    "gateway": {
        "nginx": "compare `proxy_pass` and its `upstream` block with the address that serve prints",
        "HAProxy": "compare the `server` lines with the address that serve prints, and look at their health checks",
        "Caddy": "compare the address in `reverse_proxy` with the one that serve prints",
        "Apache": "compare `ProxyPass` with the address that serve prints",
        "Cloudflare": "check the address in the DNS record, and that the origin's firewall lets Cloudflare in",
        "AWS ALB": "look at the health of the targets, and let their security group admit the load balancer",
    },
    "query": {
        "nginx": "with variables in `proxy_pass`, add `$is_args$args`; end no `rewrite` with a question mark",
        "HAProxy": "remove `http-request set-query`, `set-uri` and `replace-uri`, which drop or replace it",
        "Caddy": "remove `uri query`, and `rewrite` to a path that ends with a question mark",
        "Apache": "remove the flag `QSD` of `RewriteRule`, and the question mark at the end of its target",
        "Cloudflare": "let the URL Rewrite Rule preserve the query, and look for a Worker that builds a new URL",
        "AWS ALB": "let the url-rewrite transform keep the query, and add `#{query}` to the query of a redirect action",
    },
    "headers": {
        "nginx": "remove `proxy_set_header` lines that empty it, and `proxy_pass_request_headers off;`",
        "HAProxy": "remove `http-request del-header` and `set-header` for it",
        "Caddy": "remove `header_up` lines for it, and `request_header` ones",
        "Apache": "remove `RequestHeader unset` and `set` for it",
        "Cloudflare": "remove the Request Header Transform Rule or the Worker that changes it",
        "AWS ALB": "it passes this header on, so look at what stands behind it",
    },
    "buffering": {
        "nginx": "take X-Accel-Buffering out of `proxy_ignore_headers`, or write `proxy_buffering off;` for the streams",
        "HAProxy": "remove `http-response wait-for-body` for the streams, and add `option http-no-delay`",
        "Caddy": "write `flush_interval -1` in `reverse_proxy`, and keep `encode` away from the streams",
        "Apache": "keep the filters of mod_buffer and mod_deflate away from the streams; by itself, it passes bytes on at once",
        "Cloudflare": "set Response body buffering to None by a Configuration Rule, and look for a Worker that reads whole answers",
        "AWS ALB": "it passes bytes on as they come, except from Lambda functions, so look at what stands behind it",
    },
    "compression": {
        "nginx": "write `gzip off;` in the location of the streams, or take text/event-stream and * out of `gzip_types`",
        "HAProxy": "let `cache-control: no-transform` pass, which it respects, or take text/event-stream out of `compression type`",
        "Caddy": "give `encode` a matcher that leaves the streams out: `@rest not path /pgbus/streams*`",
        "Apache": "write `SetEnvIf Request_URI ^/pgbus/streams no-gzip`",
        "Cloudflare": "keep the header `cache-control: no-transform`, or add a Compression Rule for this path",
        "AWS ALB": "it does not compress, so look at what stands behind it",
    },
    "cache": {
        "nginx": "write `proxy_cache off;` in the location of the streams, and take Cache-Control out of `proxy_ignore_headers`",
        "HAProxy": "remove `http-request cache-use` and `http-response cache-store` for this path",
        "Caddy": "leave this path out of `cache`",
        "Apache": "write `CacheDisable /pgbus`",
        "Cloudflare": "add a Cache Rule that bypasses the cache for this path",
        "AWS ALB": "it does not cache; give this path the policy CachingDisabled in CloudFront, if that stands in front",
    },
    "idle": {
        "nginx": "raise `proxy_read_timeout` to 60s at least",
        "HAProxy": "raise `timeout server` and `timeout client` to 60s at least",
        "Caddy": "remove `read_timeout` and `response_header_timeout` of the transport of `reverse_proxy`",
        "Apache": "raise `timeout=` of `ProxyPass`, or else `ProxyTimeout`, or else `Timeout`, to 60 at least",
        "Cloudflare": "its limit is 120 seconds without a byte; look at what stands behind it, or lower PGBUS_HEARTBEAT",
        "AWS ALB": "raise its attribute `idle_timeout.timeout_seconds` to 60 at least",
    },
    "http": {
        "nginx": "write `http2 on;`, before nginx 1.25.1 `listen 443 ssl http2;`",
        "HAProxy": "add `alpn h2,http/1.1` to the `bind` line with `ssl`",
        "Caddy": "it speaks HTTP/2 unless `protocols` leaves out h2",
        "Apache": "load mod_http2, and write `Protocols h2 http/1.1`",
        "Cloudflare": "turn HTTP/2 on for the zone",
        "AWS ALB": "use an HTTPS listener, and set its attribute `routing.http2.enabled` to true",
    },
    "upstream": {
        "nginx": 'write `proxy_http_version 1.1;` and `proxy_set_header Connection "";`',
        "HAProxy": "it speaks HTTP/1.1 to servers, so look at what stands behind it",
        "Caddy": "remove `versions` of the transport of `reverse_proxy`",
        "Apache": "remove `SetEnv force-proxy-request-1.0`",
        "Cloudflare": "it speaks HTTP/1.1 or HTTP/2 to servers, so look at what stands behind it",
        "AWS ALB": "set the protocol version of the target group to HTTP/1.1",
    },
}
"""What to change, by the problem and by what stands in front."""


def remedy(problem: str, fronts: Mapping[str, str]) -> str:
    """Return what to change in the ``fronts``, a line for each; if none is known, in all that this module knows."""
    known = REMEDIES[problem]
    return "\n".join(f"{front}: {known[front]}" for front in fronts or FRONTS)


def remedies(problem: str, fronts: Mapping[str, str], rule: str = "") -> str:
    """Return the same after a line with the ``rule``, if there is one."""
    return "\n".join(filter(None, (rule, remedy(problem, fronts))))
