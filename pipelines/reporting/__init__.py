"""The report on a token dataset: facts gathered in one pass, and the self-contained page that shows them."""
