"""`asr serve`: transcription over HTTP as OpenAI's clients ask for it, live over a WebSocket, and a page for people."""
