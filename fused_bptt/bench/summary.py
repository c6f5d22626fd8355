def lines(r): return [str(len(r["blocks"]))]
