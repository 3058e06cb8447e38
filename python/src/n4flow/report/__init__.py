"""The report: numbers, pictures, the assessment, and the page that shows them.

May import `corrections` and what lies below it.
"""
