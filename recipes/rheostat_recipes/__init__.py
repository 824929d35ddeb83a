"""The tables and figures of the papers as runnable recipes: one plain function each, on public names only."""
