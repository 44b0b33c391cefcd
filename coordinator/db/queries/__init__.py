"""Questions to the table, by subject; each is one or two statements and has a bound on its work.

Every list is paged by an opaque cursor over a key that never changes (paging.py), so rows that are added between
two pages neither repeat nor hide another. A list that must look at rows it does not return looks at a bounded
number of them; its page may then be short, even empty, with a `next` to go on from.
Not here: what changes the table (db/apply.py, db/pods.py, db/tokens.py, db/dead_letters.py).
"""
