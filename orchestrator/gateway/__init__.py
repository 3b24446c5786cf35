"""More front doors for one controller: processes on its own port, or on other machines."""
