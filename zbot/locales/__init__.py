"""The catalogues of every sentence a member sees."""
