"""The error answers of AWS's S3, with all in them that must not be shown."""

_KEY = "<AWSAccessKeyId>AKIAKEYID</AWSAccessKeyId>"
_SIGNED = (
    "<StringToSign>AWS4-HMAC-SHA256\n2026</StringToSign><SignatureProvided>5161bac6"
    "</SignatureProvided><CanonicalRequest>PUT\nx-amz-security-token:TOKEN0TOKEN</CanonicalRequest>"
)
_TIMES = "<RequestTime>20261123T090500Z</RequestTime><ServerTime>2026-11-23T08:00:00Z</ServerTime>"

REFUSALS = {
    "NoSuchBucket": (404, "<BucketName>docs</BucketName>"),
    "InvalidAccessKeyId": (403, _KEY),
    "SignatureDoesNotMatch": (403, _KEY + _SIGNED),
    "AccessDenied": (403, ""),
    "ExpiredToken": (400, "<Token-0>TOKEN0TOKEN</Token-0>"),
    "InvalidToken": (400, "<Token-0>TOKEN0TOKEN</Token-0>"),
    "RequestTimeTooSkewed": (403, _TIMES),
    "PermanentRedirect": (301, "<Bucket>docs</Bucket>"),
    "AuthorizationHeaderMalformed": (400, "<Region>eu-west-1</Region>"),
    "NotImplemented": (501, "<Header>If-None-Match</Header>"),
    "SlowDown": (503, ""),
    "InternalError": (500, ""),
    "ConditionalRequestConflict": (409, ""),
}
