"""Documents to passages: read in a limited subprocess (`reader`, `worker`), cut along their structure (`chunking`)."""
