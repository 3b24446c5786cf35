"""Several engines behind one model's name: which of them a request goes to, and which it must not."""
