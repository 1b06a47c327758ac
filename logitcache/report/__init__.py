"""Report: one self-contained page of what runs and caches came to, to open from disk or to send to a colleague.

`runs` and `caches` gather facts as frozen dataclasses, `pictures` what is shown of the images; `charts` draws,
`html` writes, `students` and `anatomy` are the page's two halves, and `page` puts them together.
"""
