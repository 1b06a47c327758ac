"""Report: one self-contained HTML page of what runs and caches hold, to open from disk or to send to a colleague.

For the command line and `demo`; `bench` draws with its charts.

page           `report`, which reads, draws and writes
run_facts      facts of run folders, and which runs are repeats
cache_facts    facts of a cache
run_section    the sections about runs
cache_section  the section about a cache
thumbnails     images of a cache, and the views that the teacher saw
curves         a chart of each metric, epoch by epoch
charts         lines, points, histograms and bars in SVG
metrics        titles and units of what metrics.jsonl holds
html           elements, tables and ids, escaped
"""
