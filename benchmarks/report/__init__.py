"""Records as one page: tables and charts, as HTML that needs nothing else, as Markdown, and as pictures."""
