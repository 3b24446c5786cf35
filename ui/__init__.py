"""What people look at: the dashboard in a browser (here) and the terminal screens (`ui.tui`)."""
