"""The page of a run: its charts, what happened in it, what the model wrote, and what to do next."""
