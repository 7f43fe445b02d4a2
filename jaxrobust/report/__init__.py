"""What a run shows: its rows, a progress bar, a page, and tables of several runs."""

from jaxrobust.report.attack_progress import attack_progress as attack_progress
from jaxrobust.report.compare import compare as compare
from jaxrobust.report.page import write_report as write_report
from jaxrobust.report.progress import progress as progress
from jaxrobust.report.rows import Rows as Rows
from jaxrobust.report.rows import read_rows as read_rows
from jaxrobust.report.rows import truncate_rows as truncate_rows
