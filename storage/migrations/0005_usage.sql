CREATE TABLE usage (
    key VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    hour INTEGER NOT NULL,            -- since 1970 (UTC)
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    cold_starts BIGINT NOT NULL,
    estimated BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    first_token_seconds DOUBLE NOT NULL,
    gpu_seconds DOUBLE NOT NULL,
    PRIMARY KEY (key, model, hour)
);
