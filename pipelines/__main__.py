"""`python -m simtriplet.pipelines` is the program too."""

from simtriplet.pipelines.program import main

if __name__ == "__main__":
    main()
