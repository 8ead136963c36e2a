"""How good codecs and language models are: scores with intervals, pages to listen on, and what listeners said."""
