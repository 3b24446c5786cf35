"""Who may do what: keys, their file, and browsers that have signed in."""
