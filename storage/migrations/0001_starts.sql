CREATE TABLE starts (
    started_at DOUBLE NOT NULL,       -- seconds since 1970
    model VARCHAR NOT NULL,
    replica VARCHAR NOT NULL,
    spec VARCHAR NOT NULL,
    engine VARCHAR NOT NULL,
    seconds VARCHAR NOT NULL,         -- JSON: phase to seconds
    outcome VARCHAR NOT NULL,
    error VARCHAR NOT NULL,
    pulled_bytes BIGINT NOT NULL,
    weights_bytes BIGINT NOT NULL
);
