"""One module per verb. Each is imported only when its verb is called."""
