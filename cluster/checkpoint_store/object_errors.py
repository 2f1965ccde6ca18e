"""What an object store's refusal means, in words with a remedy."""

from __future__ import annotations

import re

# The first that is found in the error counts. {0}: what the pattern's group holds.
MEANINGS = (
    (r"ExpiredToken|RequestExpired|TokenRefreshRequired", "its credentials have expired; renew them, then go on"),
    (
        r"(?:AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint).*expecting '([a-z0-9-]+)'",
        "the bucket is in the region {0}; set AWS_REGION={0}",
    ),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint",
        "the bucket is in another region; set AWS_REGION to it",
    ),
    (r"InvalidAccessKeyId|SignatureDoesNotMatch|UNAUTHENTICATED", "the store does not know these credentials"),
    (
        r"Could not create a OAuth2|[Nn]o credentials|NO_CREDENTIALS",
        "no credentials were found; set GOOGLE_APPLICATION_CREDENTIALS or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (r"ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|HTTP status 403", "these credentials may not do that"),
    (r"NoSuchBucket|NO_SUCH_BUCKET", "there is no such bucket"),
    (
        r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|HTTP status 5\d\d|RESOURCE_EXHAUSTED|\(5\d\d\)|INTERNAL_FAILURE",
        "the store has refused every attempt for the moment; try again later",
    ),
    (
        r"NETWORK_CONNECTION|REQUEST_TIMEOUT|curlCode|CURL error|UNAVAILABLE|Connection|timed out",
        "the connection to the store broke at every attempt",
    ),
)
MOST_CHARACTERS = 300


def said(error: BaseException) -> str:
    """The meaning of an error of an object store, or its text in one line where it has none that we know."""
    text = " ".join(str(error).split())
    for pattern, meaning in MEANINGS:
        if match := re.search(pattern, text):
            return meaning.format(*match.groups())
    return (text or type(error).__name__)[:MOST_CHARACTERS]
