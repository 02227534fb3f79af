"""Other people's learners, each in a process of its own: only glue, the code itself is a checkout of the user's."""
