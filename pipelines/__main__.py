"""`python -m simtriplet.pipelines` is the program too."""

from simtriplet.pipelines.cli import main

if __name__ == "__main__":
    main()
