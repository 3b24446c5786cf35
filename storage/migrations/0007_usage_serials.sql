-- Which sums of gateways are in the table usage; see orchestrator/metering/serials.py.
CREATE TABLE usage_serials (
    source VARCHAR PRIMARY KEY,
    serial BIGINT NOT NULL,
    hour INTEGER NOT NULL             -- since 1970 (UTC)
);
