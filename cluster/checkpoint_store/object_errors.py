"""What an object store's refusal means, in words with a remedy."""

from __future__ import annotations

import re

# The first that is found in the error counts. {0}: what the pattern's group holds.
MEANINGS = (
    (
        r"ExpiredToken|RequestExpired|REQUEST_EXPIRED|TokenRefreshRequired",
        "its credentials have expired; renew them, then go on",
    ),
    (
        r"(?:AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint).*expecting '([a-z0-9-]+)'",
        "the bucket is in the region {0}; set AWS_REGION={0}",
    ),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint",
        "the bucket is in another region; set AWS_REGION to it",
    ),
    (
        r"InvalidAccessKeyId|INVALID_ACCESS_KEY_ID|SignatureDoesNotMatch|SIGNATURE_DOES_NOT_MATCH|UNAUTHENTICATED",
        "the store does not know these credentials; set those that it gave out",
    ),
    (
        r"Could not create a OAuth2|[Nn]o credentials|NO_CREDENTIALS",
        "no credentials were found; set GOOGLE_APPLICATION_CREDENTIALS or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        r"ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|HTTP status 403",
        "these credentials may not do that; let them list, read, write and delete",
    ),
    (r"NoSuchBucket|NO_SUCH_BUCKET", "there is no such bucket; make it, or correct its name"),
    (
        r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|HTTP status 5\d\d|RESOURCE_EXHAUSTED|\(5\d\d\)|INTERNAL_FAILURE",
        "the store has refused every attempt for the moment; try again later",
    ),
    (
        r"NETWORK_CONNECTION|REQUEST_TIMEOUT|DEADLINE_EXCEEDED|curlCode|CURL error|UNAVAILABLE|Connection|timed out",
        "the connection to the store broke at every attempt; check the network, then try again",
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


def other_size(what: str, there: int, sent: int) -> str:
    """The sentence about an object that has another size than was sent.

    AWS's client ends a request with a checksum; a store that does not know this form keeps it as content.
    """
    remedy = "; set AWS_REQUEST_CHECKSUM_CALCULATION=when_required, for a store that keeps checksums as content"
    return f"{what} has {there} bytes in the store in place of {sent}{remedy if there > sent else ''}"
